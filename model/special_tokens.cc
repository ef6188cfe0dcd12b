#include "model/special_tokens.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <iterator>
#include <optional>

namespace moiety {
namespace {

namespace json = boost::json;

/// A token is a text or an object with a "content"; null where there is none.
std::optional<std::string_view> token_text(const json::value* token) {
  if (token != nullptr && token->is_object()) token = token->get_object().if_contains("content");
  if (token == nullptr || !token->is_string()) return std::nullopt;
  return std::string_view(token->get_string());
}

/// The classes of transformers 4 that build the post_processor anew from the flags and the tokens
/// of tokenizer_config.json. All others take that of tokenizer.json.
struct FlagClass {
  std::string_view name;  ///< without "Fast"
  std::string_view bos_token, eos_token;
  bool adds_bos;  ///< unless add_bos_token says otherwise
};
constexpr FlagClass kFlagClasses[] = {
    {"LlamaTokenizer", "<s>", "</s>", true},
    {"CodeLlamaTokenizer", "<s>", "</s>", true},
    {"GemmaTokenizer", "<bos>", "<eos>", true},
    {"CohereTokenizer", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", true},
    {"GPTNeoXTokenizer", "<|endoftext|>", "<|endoftext|>", false},
};

const FlagClass* flag_class(const json::object& config) {
  const json::value* value = config.if_contains("tokenizer_class");
  if (value == nullptr || !value->is_string()) return nullptr;
  std::string_view name = value->get_string();
  if (name.ends_with("Fast")) name.remove_suffix(4);
  const auto* found = std::find_if(std::begin(kFlagClasses), std::end(kFlagClasses),
                                   [&](const FlagClass& each) { return each.name == name; });
  return found == std::end(kFlagClasses) ? nullptr : found;
}

struct Flag {
  std::string_view name, token;
  bool fallback;                   ///< where the file does not have it
  std::string_view default_token;  ///< where the file does not name the token
};

/// `ids` becomes the token, or nothing.
Result<void> apply_flag(const json::object& config,
                        const Flag& flag,
                        const std::function<std::int32_t(std::string_view)>& token_id,
                        std::vector<std::int32_t>& ids) {
  const json::value* add = config.if_contains(flag.name);
  if (add != nullptr && !add->is_bool() && !add->is_null()) {
    return fail(ErrorCode::kInvalidArgument, fmt::format("{}: is not true or false", flag.name));
  }
  ids.clear();
  if (add == nullptr ? !flag.fallback : !add->is_bool() || !add->get_bool()) return {};
  const json::value* token = config.if_contains(flag.token);
  const std::optional<std::string_view> text =
      token == nullptr ? flag.default_token : token_text(token);
  if (!text) return {};
  const std::int32_t id = token_id(*text);
  if (id < 0) {
    return fail(ErrorCode::kInvalidArgument,
                fmt::format("{}: '{}' is no token of tokenizer.json; {}: false leaves it out",
                            flag.token, *text, flag.name));
  }
  ids.push_back(id);
  return {};
}

}  // namespace

Result<void> apply_tokenizer_config(std::string_view config,
                                    const std::function<std::int32_t(std::string_view)>& token_id,
                                    SpecialTokens& tokens) {
  // Not simdjson: many files have integers beyond 64 bits (model_max_length), which it refuses.
  boost::system::error_code error;
  const json::value parsed = json::parse(config, error);
  if (error) return fail(ErrorCode::kInvalidArgument, "not JSON: " + error.message());
  const json::object* fields = parsed.if_object();
  if (fields == nullptr) return fail(ErrorCode::kInvalidArgument, "is not a JSON object");
  const FlagClass* by_flags = flag_class(*fields);
  // transformers 5 writes "backend", and its post_processor as it is meant.
  if (by_flags == nullptr || fields->contains("backend")) return {};
  const Flag bos = {"add_bos_token", "bos_token", by_flags->adds_bos, by_flags->bos_token};
  const Flag eos = {"add_eos_token", "eos_token", false, by_flags->eos_token};
  MOIETY_TRY(apply_flag(*fields, bos, token_id, tokens.before));
  return apply_flag(*fields, eos, token_id, tokens.after);
}

}  // namespace moiety
