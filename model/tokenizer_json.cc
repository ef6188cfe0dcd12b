#include "model/tokenizer_json.h"

#include <algorithm>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "model/tokenizer_json_parts.h"
#include "model/tokenizer_json_value.h"

namespace moiety {
namespace {

Result<Vocabulary> parse_vocab(const JsonValue& part) {
  MOIETY_ASSIGN(const auto fields, part.as<simdjson::dom::object>("an object"));
  std::size_t num_tokens = 0;
  std::size_t num_bytes = 0;
  for (const auto& [text, json] : fields) {
    ++num_tokens;
    num_bytes += text.size();
  }
  Vocabulary vocab;
  vocab.reserve(num_tokens, num_bytes);
  std::vector<bool> used(num_tokens);  // ids; most vocabularies have no gaps
  for (const auto& [text, json] : fields) {
    const auto token = [&, &name = text, &value = json] {
      return JsonValue(value, fmt::format("{}['{}']", part.where(), name));
    };
    std::int64_t number = 0;
    if (json.get(number) != simdjson::SUCCESS || number < 0 || number >= (1 << 24)) {
      MOIETY_TRY(token().token_id());
    }
    const auto id = static_cast<std::size_t>(number);
    if (id >= used.size()) used.resize(id + 1);
    if (used[id]) return token().wrong(fmt::format("id {} is used twice", id));
    used[id] = true;
    if (!vocab.add(text, static_cast<std::int32_t>(id))) return token().wrong("is listed twice");
  }
  return vocab;
}

/// Merges are ["a", "b"] or "a b"; the second form may start with a "#version" line.
Result<std::vector<MergeRules::Merge>> parse_merges(const JsonValue& part) {
  MOIETY_ASSIGN(const auto items, part.as<simdjson::dom::array>("a list"));
  std::vector<MergeRules::Merge> merges;
  merges.reserve(items.size());
  std::size_t index = 0;
  for (const simdjson::dom::element json : items) {
    const auto item = [&] { return JsonValue(json, fmt::format("{}[{}]", part.where(), index)); };
    std::string_view line;
    if (json.get(line) == simdjson::SUCCESS) {
      const bool is_version = line.starts_with("#version");
      const std::size_t space = line.find(' ');
      if (!is_version && (space == std::string_view::npos ||
                          line.find(' ', space + 1) != std::string_view::npos)) {
        return item().wrong("is not two tokens with a space between them");
      }
      if (!is_version) merges.push_back({line.substr(0, space), line.substr(space + 1)});
    } else {
      MOIETY_ASSIGN(const auto pair, item().items());
      if (pair.size() != 2) return item().wrong("is not a pair of tokens");
      MOIETY_ASSIGN(const std::string_view left, pair[0].text());
      MOIETY_ASSIGN(const std::string_view right, pair[1].text());
      merges.push_back({left, right});
    }
    ++index;
  }
  return merges;
}

Result<BpeModel::Options> parse_options(const JsonValue& part,
                                        const Vocabulary& vocab,
                                        BpeModel::Alphabet alphabet) {
  if (const auto dropout = part.find("dropout")) {
    MOIETY_ASSIGN(const double rate, dropout->as<double>("a number"));
    if (rate != 0) return dropout->unsupported("a random choice of merges");
  }
  for (std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const auto affix = part.find(key);
    if (!affix) continue;
    MOIETY_ASSIGN(const std::string_view text, affix->text());
    if (!text.empty()) return affix->unsupported("anything but an empty text");
  }
  BpeModel::Options options{.alphabet = alphabet};
  MOIETY_ASSIGN(options.ignore_merges, part.flag("ignore_merges", false));
  MOIETY_ASSIGN(options.byte_fallback, part.flag("byte_fallback", false));
  MOIETY_ASSIGN(options.fuse_unk, part.flag("fuse_unk", false));
  if (const auto unk = part.find("unk_token")) {
    MOIETY_ASSIGN(const std::string_view text, unk->text());
    options.unk_id = vocab.find(text);
    // With bytes it is never needed: each has a token.
    if (options.unk_id < 0 && alphabet == BpeModel::Alphabet::kCharacters) {
      return unk->wrong(fmt::format("'{}' is not in vocab", text));
    }
  }
  return options;
}

Result<BpeModel> parse_model(const JsonValue& part, BpeModel::Alphabet alphabet) {
  MOIETY_TRY(part.fields());
  if (const auto type = part.find("type")) {  // old files have none
    MOIETY_ASSIGN(const std::string_view name, type->text());
    if (name != "BPE") return part.unsupported(fmt::format("model {}", name));
  }
  MOIETY_ASSIGN(const JsonValue vocab_json, part.at("vocab"));
  MOIETY_ASSIGN(const JsonValue merges_json, part.at("merges"));
  MOIETY_ASSIGN(Vocabulary vocab, parse_vocab(vocab_json));
  MOIETY_ASSIGN(const BpeModel::Options options, parse_options(part, vocab, alphabet));
  MOIETY_ASSIGN(const auto merges, parse_merges(merges_json));
  auto model = BpeModel::build(std::move(vocab), merges, options);
  if (!model) return with_context("model", model.error());
  return model;
}

Result<std::vector<AddedToken>> parse_added_tokens(const JsonValue& part, const Vocabulary& vocab) {
  std::unordered_map<std::int32_t, std::string_view> texts;  // of the vocabulary and added so far
  for (std::size_t i = 0; i < vocab.size(); ++i) texts.emplace(vocab[i].id, vocab[i].text);
  std::unordered_set<std::string_view> contents;
  MOIETY_ASSIGN(const auto items, part.items());
  std::vector<AddedToken> tokens;
  for (const JsonValue& item : items) {
    MOIETY_TRY(item.fields());
    MOIETY_ASSIGN(const JsonValue id_json, item.at("id"));
    MOIETY_ASSIGN(const std::int32_t id, id_json.token_id());
    MOIETY_ASSIGN(const std::string_view content, item.text("content"));
    if (content.empty()) continue;
    const std::int32_t in_vocab = vocab.find(content);
    if (in_vocab >= 0 && in_vocab != id) {
      return item.wrong(
          fmt::format("'{}' has id {}, but {} in model.vocab", content, id, in_vocab));
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

/// The ids that the post_processor adds are those of tokens.
Result<void> check_special(const JsonValue& part, const TokenizerParts& parts) {
  std::unordered_set<std::int32_t> ids;
  const Vocabulary& vocab = parts.model.vocab();
  for (const auto* list : {&parts.special.before, &parts.special.after}) {
    ids.insert(list->begin(), list->end());
  }
  for (std::size_t i = 0; i < vocab.size() && !ids.empty(); ++i) ids.erase(vocab[i].id);
  for (const AddedToken& token : parts.added_tokens) ids.erase(token.id);
  if (ids.empty()) return {};
  return part.wrong(fmt::format("there is no token with id {}", *ids.begin()));
}

}  // namespace

Result<TokenizerParts> parse_tokenizer_json(std::string_view json) {
  simdjson::dom::parser parser;
  simdjson::dom::element root;
  if (const auto error = parser.parse(json.data(), json.size()).get(root)) {
    return fail(ErrorCode::kInvalidArgument,
                fmt::format("not JSON: {}", simdjson::error_message(error)));
  }
  if (!root.is_object()) return fail(ErrorCode::kInvalidArgument, "is not a JSON object");
  const JsonValue file(root, "");
  MOIETY_TRY(file.fields());
  if (const auto version = file.find("version")) {
    MOIETY_ASSIGN(const std::string_view number, version->text());
    if (number != "1.0") return version->unsupported(number);
  }
  Normalizer normalizer;
  if (const auto part = file.find("normalizer")) MOIETY_TRY(parse_normalizer(*part, normalizer));
  PreTokenizer pre_tokenizer;
  if (const auto part = file.find("pre_tokenizer")) {
    MOIETY_TRY(parse_pre_tokenizer(*part, pre_tokenizer));
  }
  const bool byte_level = pre_tokenizer.remove_last_byte_level();
  MOIETY_ASSIGN(const JsonValue decoder_json, file.at("decoder"));
  MOIETY_ASSIGN(TokenDecoder decoder, parse_decoder(decoder_json));
  MOIETY_ASSIGN(const JsonValue model_json, file.at("model"));
  MOIETY_ASSIGN(BpeModel model,
                parse_model(model_json, byte_level ? BpeModel::Alphabet::kBytes
                                                   : BpeModel::Alphabet::kCharacters));
  TokenizerParts parts{std::move(model),
                       std::move(normalizer),
                       std::move(pre_tokenizer),
                       std::move(decoder),
                       {},
                       {}};
  if (const auto part = file.find("added_tokens")) {
    MOIETY_ASSIGN(parts.added_tokens, parse_added_tokens(*part, parts.model.vocab()));
  }
  if (const auto part = file.find("post_processor")) {
    MOIETY_ASSIGN(parts.special, parse_post_processor(*part));
    MOIETY_TRY(check_special(*part, parts));
  }
  return parts;
}

}  // namespace moiety
