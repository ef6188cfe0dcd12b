#include "bench/synthetic_tokenizer.h"

#include <boost/json.hpp>

namespace moiety::bench {
namespace json = boost::json;
namespace {

constexpr std::int32_t kBytes = 256;
constexpr const char* kSpace = "\xC4\xA0";  // U+0120: how byte-level BPE writes a space

// What a merge makes: "a b" or ["a", "b"].
std::string merged(const json::value& merge) {
  std::string text;
  if (merge.is_array()) {
    for (const json::value& part : merge.get_array()) text += std::string(part.as_string());
  } else {
    text = std::string(merge.as_string());
    text.erase(text.find(' '), 1);
  }
  return text;
}

// Throws boost::system::system_error (or out_of_range) where the base has not the expected fields.
Result<std::string> resize(json::object tokenizer, std::int32_t vocab_size) {
  json::object& model = tokenizer.at("model").as_object();
  const json::object& base = model.at("vocab").as_object();
  const auto least =
      static_cast<std::int32_t>(tokenizer.at("added_tokens").as_array().size()) + kBytes;
  if (vocab_size < least) {
    return fail(ErrorCode::kInvalidArgument, "a vocabulary of " + std::to_string(vocab_size) +
                                                 " tokens is too small for a tokenizer: its "
                                                 "special tokens and bytes are " +
                                                 std::to_string(least));
  }
  json::object vocab;
  for (const auto& [token, id] : base) {
    if (id.as_int64() < vocab_size) vocab.emplace(token, id);
  }
  json::array merges;
  for (const json::value& merge : model.at("merges").as_array()) {
    if (vocab.contains(merged(merge))) merges.push_back(merge);
  }
  for (auto id = static_cast<std::int32_t>(vocab.size()); id < vocab_size; ++id) {
    if (!vocab.emplace(kSpace + std::string("w") + std::to_string(id), id).second) {
      return fail(ErrorCode::kInvalidArgument,
                  "the base tokenizer has a token w" + std::to_string(id));
    }
  }
  model["vocab"] = std::move(vocab);
  model["merges"] = std::move(merges);
  return json::serialize(tokenizer);
}

}  // namespace

Result<std::string> resize_tokenizer(std::string_view base_json, std::int32_t vocab_size) {
  try {
    return resize(json::parse({base_json.data(), base_json.size()}).as_object(), vocab_size);
  } catch (const std::exception& error) {  // of Boost.JSON: another layout than expected
    return fail(ErrorCode::kInvalidArgument,
                std::string("not a byte-level BPE tokenizer.json: ") + error.what());
  }
}

}  // namespace moiety::bench
