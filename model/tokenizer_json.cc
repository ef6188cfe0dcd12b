#include "model/tokenizer_json.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <optional>
#include <string>
#include <unordered_set>
#include <utility>

namespace moiety {
namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::object;

constexpr std::int64_t kMaxId = (1 << 24) - 1;
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
// The numbers of Unicode 17: those of patterns (16) and three ranges.
constexpr std::string_view kDigit = R"([\p{N}\x{11de0}-\x{11de9}\x{16ff4}\x{16ff6}])";

/// A value with the place it came from ("model.merges[3]"), for error messages.
class Value {
 public:
  Value(element json, std::string where) : json_(json), where_(std::move(where)) {}

  Error wrong(std::string_view problem) const {
    return fail(ErrorCode::kInvalidArgument, where_ + ": " + std::string(problem));
  }
  Error unsupported(std::string_view what) const {
    return wrong(fmt::format("{} is not supported", what));
  }

  /// Absent and null are the same.
  std::optional<Value> find(std::string_view key) const {
    element found;
    if (json_[key].get(found) != simdjson::SUCCESS || found.is_null()) return std::nullopt;
    return Value(found, where_.empty() ? std::string(key) : fmt::format("{}.{}", where_, key));
  }
  Result<Value> at(std::string_view key) const {
    if (auto found = find(key)) return std::move(*found);
    return wrong(fmt::format("has no \"{}\"", key));
  }
  template <class T>
  Result<T> as(std::string_view type) const {
    T value;
    if (json_.get(value) == simdjson::SUCCESS) return value;
    return wrong(fmt::format("is not {}", type));
  }
  Result<std::string_view> text() const { return as<std::string_view>("a string"); }
  Result<std::string_view> text(std::string_view key) const {
    MOIETY_ASSIGN(const Value value, at(key));
    return value.text();
  }
  Result<bool> flag(std::string_view key, bool otherwise) const {
    const auto value = find(key);
    if (!value) return otherwise;
    return value->as<bool>("true or false");
  }
  Result<std::int32_t> token_id() const {
    std::int64_t id = 0;
    if (json_.get(id) != simdjson::SUCCESS || id < 0 || id > kMaxId) {
      return wrong(fmt::format("is not a token id from 0 to {}", kMaxId));
    }
    return static_cast<std::int32_t>(id);
  }
  Result<std::vector<Value>> items() const {
    MOIETY_ASSIGN(const array list, as<array>("a list"));
    std::vector<Value> values;
    for (element item : list) {
      values.emplace_back(item, fmt::format("{}[{}]", where_, values.size()));
    }
    return values;
  }
  Result<object> fields() const { return as<object>("an object"); }
  bool is_text() const { return json_.is_string(); }

 private:
  element json_;
  std::string where_;
};

/// {"String": text} or {"Regex": expression} under "pattern".
Result<Regex> parse_pattern(const Value& part) {
  MOIETY_ASSIGN(const Value pattern, part.at("pattern"));
  const auto located = [&](Result<Regex> regex) -> Result<Regex> {
    if (!regex) return pattern.wrong(regex.error().message);
    return regex;
  };
  if (pattern.find("String")) {
    MOIETY_ASSIGN(const std::string_view text, pattern.text("String"));
    return located(Regex::literal(text));
  }
  if (!pattern.find("Regex")) return pattern.wrong("has neither \"String\" nor \"Regex\"");
  MOIETY_ASSIGN(const std::string_view expression, pattern.text("Regex"));
  return located(Regex::compile(expression));
}

Result<void> parse_normalizer(const Value& part, Normalizer& normalizer) {
  MOIETY_ASSIGN(const std::string_view type, part.text("type"));
  if (type == "Sequence") {
    MOIETY_ASSIGN(const Value list, part.at("normalizers"));
    MOIETY_ASSIGN(const auto steps, list.items());
    for (const Value& step : steps) MOIETY_TRY(parse_normalizer(step, normalizer));
  } else if (type == "NFC") {
    normalizer.add_form(Normalizer::Form::kNfc);
  } else if (type == "NFD") {
    normalizer.add_form(Normalizer::Form::kNfd);
  } else if (type == "NFKC") {
    normalizer.add_form(Normalizer::Form::kNfkc);
  } else if (type == "NFKD") {
    normalizer.add_form(Normalizer::Form::kNfkd);
  } else if (type == "Lowercase") {
    normalizer.add_lowercase();
  } else if (type == "Replace") {
    MOIETY_ASSIGN(Regex pattern, parse_pattern(part));
    MOIETY_ASSIGN(const std::string_view content, part.text("content"));
    normalizer.add_replace(std::move(pattern), std::string(content));
  } else {
    return part.unsupported(fmt::format("normalizer {}", type));
  }
  return {};
}

Result<SplitBehavior> parse_behavior(const Value& part) {
  MOIETY_ASSIGN(const std::string_view name, part.text("behavior"));
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return part.unsupported(fmt::format("behavior {}", name));
}

/// `byte_level` becomes true with the ByteLevel part; what follows would see its alphabet, not
/// text.
Result<void> parse_pre_tokenizer(const Value& part, PreTokenizer& pre_tokenizer, bool& byte_level) {
  MOIETY_ASSIGN(const std::string_view type, part.text("type"));
  if (byte_level) return part.unsupported(fmt::format("{} after ByteLevel", type));
  if (type == "Sequence") {
    MOIETY_ASSIGN(const Value list, part.at("pretokenizers"));
    MOIETY_ASSIGN(const auto steps, list.items());
    for (const Value& step : steps) {
      MOIETY_TRY(parse_pre_tokenizer(step, pre_tokenizer, byte_level));
    }
  } else if (type == "Split") {
    MOIETY_ASSIGN(Regex pattern, parse_pattern(part));
    MOIETY_ASSIGN(const SplitBehavior behavior, parse_behavior(part));
    MOIETY_ASSIGN(const bool invert, part.flag("invert", false));
    pre_tokenizer.add_split(std::move(pattern), behavior, invert);
  } else if (type == "Digits") {
    MOIETY_ASSIGN(const bool individual, part.flag("individual_digits", false));
    MOIETY_ASSIGN(Regex pattern, Regex::compile(kDigit));
    pre_tokenizer.add_split(std::move(pattern),
                            individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous,
                            false);
  } else if (type == "ByteLevel") {
    byte_level = true;
    MOIETY_ASSIGN(const bool prefix_space, part.flag("add_prefix_space", true));
    MOIETY_ASSIGN(const bool use_regex, part.flag("use_regex", true));
    if (prefix_space) pre_tokenizer.add_prefix_space();
    if (use_regex) {
      MOIETY_ASSIGN(Regex pattern, Regex::compile(kGpt2Pattern));
      pre_tokenizer.add_split(std::move(pattern), SplitBehavior::kIsolated, false);
    }
  } else {
    return part.unsupported(fmt::format("pre_tokenizer {}", type));
  }
  return {};
}

Result<TokenMap> parse_vocab(const Value& part) {
  MOIETY_ASSIGN(const object fields, part.fields());
  TokenMap vocab;
  vocab.reserve(fields.size());
  std::unordered_set<std::int32_t> ids;
  ids.reserve(fields.size());
  for (const auto& [text, json] : fields) {
    const Value token(json, fmt::format("model.vocab['{}']", text));
    MOIETY_ASSIGN(const std::int32_t id, token.token_id());
    if (!vocab.emplace(text, id).second) return token.wrong("is listed twice");
    if (!ids.insert(id).second) return token.wrong(fmt::format("id {} is used twice", id));
  }
  return vocab;
}

/// Merges are ["a", "b"] or "a b"; the second form may start with a "#version" line.
Result<std::vector<BpeModel::Merge>> parse_merges(const Value& part) {
  MOIETY_ASSIGN(const auto items, part.items());
  std::vector<BpeModel::Merge> merges;
  merges.reserve(items.size());
  for (const Value& item : items) {
    if (item.is_text()) {
      MOIETY_ASSIGN(const std::string_view line, item.text());
      if (line.starts_with("#version")) continue;
      const std::size_t space = line.find(' ');
      if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos) {
        return item.wrong("is not two tokens with a space between them");
      }
      merges.push_back({std::string(line.substr(0, space)), std::string(line.substr(space + 1))});
      continue;
    }
    MOIETY_ASSIGN(const auto pair, item.items());
    if (pair.size() != 2) return item.wrong("is not a pair of tokens");
    MOIETY_ASSIGN(const std::string_view left, pair[0].text());
    MOIETY_ASSIGN(const std::string_view right, pair[1].text());
    merges.push_back({std::string(left), std::string(right)});
  }
  return merges;
}

Result<BpeModel> parse_model(const Value& part) {
  if (const auto type = part.find("type")) {  // old files have none
    MOIETY_ASSIGN(const std::string_view name, type->text());
    if (name != "BPE") return part.unsupported(fmt::format("model {}", name));
  }
  if (const auto dropout = part.find("dropout")) {
    MOIETY_ASSIGN(const double rate, dropout->as<double>("a number"));
    if (rate != 0) return dropout->unsupported("a random choice of merges");
  }
  MOIETY_ASSIGN(const bool byte_fallback, part.flag("byte_fallback", false));
  if (byte_fallback) return part.unsupported("byte_fallback (not byte-level BPE)");
  for (std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const auto affix = part.find(key);
    if (!affix) continue;
    MOIETY_ASSIGN(const std::string_view text, affix->text());
    if (!text.empty()) return affix->unsupported("anything but an empty text");
  }
  MOIETY_ASSIGN(const bool ignore_merges, part.flag("ignore_merges", false));
  MOIETY_ASSIGN(const Value vocab_json, part.at("vocab"));
  MOIETY_ASSIGN(const Value merges_json, part.at("merges"));
  MOIETY_ASSIGN(TokenMap vocab, parse_vocab(vocab_json));
  MOIETY_ASSIGN(const auto merges, parse_merges(merges_json));
  // unk_token and fuse_unk never matter: every byte has a token (build() checks it).
  auto model = BpeModel::build(std::move(vocab), merges, ignore_merges);
  if (!model) return with_context("model", model.error());
  return model;
}

Result<std::vector<AddedToken>> parse_added_tokens(const Value& part, const TokenMap& vocab) {
  std::unordered_map<std::int32_t, std::string_view> texts;  // of the vocabulary and added so far
  for (const auto& [text, id] : vocab) texts.emplace(id, text);
  std::unordered_set<std::string_view> contents;
  MOIETY_ASSIGN(const auto items, part.items());
  std::vector<AddedToken> tokens;
  for (const Value& item : items) {
    MOIETY_ASSIGN(const Value id_json, item.at("id"));
    MOIETY_ASSIGN(const std::int32_t id, id_json.token_id());
    MOIETY_ASSIGN(const std::string_view content, item.text("content"));
    if (content.empty()) continue;
    const auto in_vocab = vocab.find(content);
    if (in_vocab != vocab.end() && in_vocab->second != id) {
      return item.wrong(
          fmt::format("'{}' has id {}, but {} in model.vocab", content, id, in_vocab->second));
    }
    if (!contents.insert(content).second) {
      return item.wrong(fmt::format("'{}' is listed twice", content));
    }
    if (const auto other = texts.emplace(id, content).first; other->second != content) {
      return item.wrong(
          fmt::format("id {} of '{}' is also that of '{}'", id, content, other->second));
    }
    AddedToken token{.id = id, .content = std::string(content)};
    MOIETY_ASSIGN(token.special, item.flag("special", false));
    MOIETY_ASSIGN(token.single_word, item.flag("single_word", false));
    MOIETY_ASSIGN(token.lstrip, item.flag("lstrip", false));
    MOIETY_ASSIGN(token.rstrip, item.flag("rstrip", false));
    MOIETY_ASSIGN(token.normalized, item.flag("normalized", !token.special));
    tokens.push_back(std::move(token));
  }
  return tokens;
}

Result<void> check_decoder(const Value& file) {
  MOIETY_ASSIGN(const Value decoder, file.at("decoder"));
  MOIETY_ASSIGN(const std::string_view type, decoder.text("type"));
  if (type != "ByteLevel") return decoder.unsupported(fmt::format("decoder {}", type));
  return {};
}

Result<void> check_post_processor(const Value& file) {
  const auto part = file.find("post_processor");
  if (!part) return {};
  MOIETY_ASSIGN(const std::string_view type, part->text("type"));
  for (std::string_view known :
       {"ByteLevel", "TemplateProcessing", "Sequence", "BertProcessing", "RobertaProcessing"}) {
    if (type == known) return {};
  }
  return part->unsupported(fmt::format("post_processor {}", type));
}

}  // namespace

Result<TokenizerParts> parse_tokenizer_json(std::string_view json) {
  simdjson::dom::parser parser;
  element root;
  if (const auto error = parser.parse(json.data(), json.size()).get(root)) {
    return fail(ErrorCode::kInvalidArgument,
                fmt::format("not JSON: {}", simdjson::error_message(error)));
  }
  if (!root.is_object()) return fail(ErrorCode::kInvalidArgument, "is not a JSON object");
  const Value file(root, "");
  if (const auto version = file.find("version")) {
    MOIETY_ASSIGN(const std::string_view number, version->text());
    if (number != "1.0") return version->unsupported(number);
  }
  Normalizer normalizer;
  if (const auto part = file.find("normalizer")) MOIETY_TRY(parse_normalizer(*part, normalizer));
  PreTokenizer pre_tokenizer;
  bool byte_level = false;
  MOIETY_ASSIGN(const Value pre_tokenizer_json, file.at("pre_tokenizer"));
  MOIETY_TRY(parse_pre_tokenizer(pre_tokenizer_json, pre_tokenizer, byte_level));
  if (!byte_level) return pre_tokenizer_json.unsupported("a pre_tokenizer without ByteLevel");
  MOIETY_TRY(check_decoder(file));
  MOIETY_TRY(check_post_processor(file));
  MOIETY_ASSIGN(const Value model_json, file.at("model"));
  MOIETY_ASSIGN(BpeModel model, parse_model(model_json));
  std::vector<AddedToken> added_tokens;
  if (const auto part = file.find("added_tokens")) {
    MOIETY_ASSIGN(added_tokens, parse_added_tokens(*part, model.vocab()));
  }
  return TokenizerParts{std::move(model), std::move(normalizer), std::move(pre_tokenizer),
                        std::move(added_tokens)};
}

}  // namespace moiety
