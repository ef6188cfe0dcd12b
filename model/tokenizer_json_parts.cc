#include "model/tokenizer_json_parts.h"

#include <optional>
#include <string>
#include <utility>

#include "common/utf8.h"
#include "model/tokenizer_unicode.h"

namespace moiety {
namespace {

constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
// The numbers of Unicode 17: those of patterns (16) and three ranges.
constexpr std::string_view kDigit = R"([\p{N}\x{11de0}-\x{11de9}\x{16ff4}-\x{16ff6}])";

/// {"String": text} or {"Regex": expression} under "pattern".
Result<Regex> parse_pattern(const JsonValue& part) {
  MOIETY_ASSIGN(const JsonValue pattern, part.at("pattern"));
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

Result<SplitBehavior> parse_behavior(const JsonValue& part) {
  MOIETY_ASSIGN(const std::string_view name, part.text("behavior"));
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return part.unsupported(fmt::format("behavior {}", name));
}

/// A text of one character.
Result<std::string> parse_character(const JsonValue& part, std::string_view key) {
  MOIETY_ASSIGN(const JsonValue value, part.at(key));
  MOIETY_ASSIGN(const std::string_view text, value.text());
  if (text.empty() || first_code_point(text).bytes != text.size()) {
    return value.wrong("is not one character");
  }
  return std::string(text);
}

struct Metaspace {
  std::string mark;
  PreTokenizer::Prepend prepend;
  bool split;
};

// As pre_tokenizer and as decoder. Old files have add_prefix_space in place of prepend_scheme.
Result<Metaspace> parse_metaspace(const JsonValue& part) {
  Metaspace result{};
  MOIETY_ASSIGN(result.mark, parse_character(part, "replacement"));
  std::string_view scheme = "always";
  const auto scheme_json = part.find("prepend_scheme");
  if (scheme_json) {
    MOIETY_ASSIGN(scheme, scheme_json->text());
  }
  MOIETY_ASSIGN(const bool prefix, part.flag("add_prefix_space", true));
  if (!prefix) {
    if (scheme_json && scheme != "never") {
      return scheme_json->wrong(fmt::format("is {}, but add_prefix_space is false", scheme));
    }
    scheme = "never";
  }
  if (scheme == "always") {
    result.prepend = PreTokenizer::Prepend::kAlways;
  } else if (scheme == "first") {
    result.prepend = PreTokenizer::Prepend::kFirst;
  } else if (scheme == "never") {
    result.prepend = PreTokenizer::Prepend::kNever;
  } else {
    return scheme_json->unsupported(scheme);
  }
  MOIETY_ASSIGN(result.split, part.flag("split", true));
  return result;
}

Result<void> parse_byte_level(const JsonValue& part, PreTokenizer& pre_tokenizer) {
  MOIETY_ASSIGN(const bool prefix_space, part.flag("add_prefix_space", true));
  MOIETY_ASSIGN(const bool use_regex, part.flag("use_regex", true));
  if (prefix_space) pre_tokenizer.add_prefix_space();
  if (use_regex) {
    MOIETY_ASSIGN(Regex pattern, Regex::compile(kGpt2Pattern));
    pre_tokenizer.add_split(std::move(pattern), SplitBehavior::kIsolated, false);
  }
  pre_tokenizer.add_byte_level();
  return {};
}

/// BertNormalizer: up to four steps.
Result<void> parse_bert(const JsonValue& part, Normalizer& normalizer) {
  MOIETY_ASSIGN(const bool clean, part.flag("clean_text", true));
  MOIETY_ASSIGN(const bool chinese, part.flag("handle_chinese_chars", true));
  MOIETY_ASSIGN(const bool lowercase, part.flag("lowercase", true));
  MOIETY_ASSIGN(const bool accents, part.flag("strip_accents", lowercase));  // null: as lowercase
  if (clean) normalizer.add_rewrite(Normalizer::Rewrite::kBertClean);
  if (chinese) normalizer.add_rewrite(Normalizer::Rewrite::kBertChinese);
  if (accents) {
    normalizer.add_form(Normalizer::Form::kNfd);
    normalizer.add_rewrite(Normalizer::Rewrite::kBertAccents);
  }
  if (lowercase) normalizer.add_rewrite(Normalizer::Rewrite::kLowercase);
  return {};
}

/// Collects the steps of a decoder. What comes after ByteFallback and Fuse sees other tokens than
/// the vocabulary's, so that only the orders that files have are understood.
struct DecoderSteps {
  std::vector<TokenDecoder::Step> steps;
  bool byte_fallback = false;
  bool fuse = false;
  TokenDecoder::Strip fused;

  Result<void> add(const JsonValue& part) {
    MOIETY_ASSIGN(const std::string_view type, part.type());
    if (type == "Sequence") {
      MOIETY_ASSIGN(const auto list, part.items("decoders"));
      for (const JsonValue& step : list) MOIETY_TRY(add(step));
      return {};
    }
    if (type == "Strip") return add_strip(part);
    if (type == "Fuse") {
      fuse = true;
      return {};
    }
    if (byte_fallback || fuse) {
      return part.unsupported(fmt::format("{} after {}", type, fuse ? "Fuse" : "ByteFallback"));
    }
    if (type == "ByteFallback") {
      byte_fallback = true;
    } else if (type == "Replace") {
      MOIETY_ASSIGN(Regex pattern, parse_pattern(part));
      MOIETY_ASSIGN(const std::string_view content, part.text("content"));
      steps.emplace_back(TokenDecoder::Replace{std::move(pattern), std::string(content)});
    } else if (type == "Metaspace") {
      MOIETY_ASSIGN(const Metaspace metaspace, parse_metaspace(part));
      MOIETY_ASSIGN(Regex mark, Regex::literal(metaspace.mark));
      const bool drop_first = metaspace.prepend != PreTokenizer::Prepend::kNever;
      steps.emplace_back(TokenDecoder::Metaspace{std::move(mark), drop_first});
    } else {
      return part.unsupported(fmt::format("decoder {}", type));
    }
    return {};
  }

  Result<void> add_strip(const JsonValue& part) {
    constexpr std::int32_t kMost = 1 << 20;
    TokenDecoder::Strip strip;
    MOIETY_ASSIGN(strip.character, parse_character(part, "content"));
    MOIETY_ASSIGN(const JsonValue start, part.at("start"));
    MOIETY_ASSIGN(const std::int32_t most, start.number(kMost, "a number"));
    MOIETY_ASSIGN(const JsonValue stop, part.at("stop"));
    MOIETY_ASSIGN(const std::int32_t at_end, stop.number(kMost, "a number"));
    if (at_end != 0) return stop.unsupported("anything but 0");
    strip.most = static_cast<std::size_t>(most);
    if (!fuse && !byte_fallback) {
      steps.emplace_back(std::move(strip));
    } else if (fuse && fused.most == 0) {
      fused = std::move(strip);
    } else if (strip.most > 0) {
      return part.unsupported(fuse ? "a second Strip" : "Strip between ByteFallback and Fuse");
    }
    return {};
  }
};

Result<void> add_template(const JsonValue& part, SpecialTokens& special) {
  MOIETY_ASSIGN(const auto pieces, part.items("single"));
  const auto tokens = part.find("special_tokens");
  bool text_seen = false;
  for (const JsonValue& piece : pieces) {
    if (const auto sequence = piece.find("Sequence")) {
      MOIETY_ASSIGN(const std::string_view id, sequence->text("id"));
      if (id != "A" || text_seen) return sequence->wrong("is not the one text, A");
      text_seen = true;
      continue;
    }
    MOIETY_ASSIGN(const JsonValue token, piece.at("SpecialToken"));
    MOIETY_ASSIGN(const std::string_view name, token.text("id"));
    const auto known = tokens ? tokens->find(name) : std::nullopt;
    if (!known) return token.wrong(fmt::format("'{}' is not in special_tokens", name));
    MOIETY_ASSIGN(const auto ids, known->items("ids"));
    for (const JsonValue& id_json : ids) {
      MOIETY_ASSIGN(const std::int32_t id, id_json.token_id());
      (text_seen ? special.after : special.before).push_back(id);
    }
  }
  if (!text_seen) return part.wrong("single: has no Sequence A");
  return {};
}

}  // namespace

Result<void> parse_normalizer(const JsonValue& part, Normalizer& normalizer) {
  MOIETY_ASSIGN(const std::string_view type, part.type());
  if (type == "Sequence") {
    MOIETY_ASSIGN(const auto steps, part.items("normalizers"));
    for (const JsonValue& step : steps) MOIETY_TRY(parse_normalizer(step, normalizer));
  } else if (type == "NFC") {
    normalizer.add_form(Normalizer::Form::kNfc);
  } else if (type == "NFD") {
    normalizer.add_form(Normalizer::Form::kNfd);
  } else if (type == "NFKC") {
    normalizer.add_form(Normalizer::Form::kNfkc);
  } else if (type == "NFKD") {
    normalizer.add_form(Normalizer::Form::kNfkd);
  } else if (type == "Lowercase") {
    normalizer.add_rewrite(Normalizer::Rewrite::kLowercase);
  } else if (type == "ByteLevel") {
    normalizer.add_rewrite(Normalizer::Rewrite::kByteLevel);
  } else if (type == "StripAccents") {
    normalizer.add_rewrite(Normalizer::Rewrite::kStripAccents);
  } else if (type == "Nmt") {
    normalizer.add_rewrite(Normalizer::Rewrite::kNmt);
  } else if (type == "BertNormalizer") {
    MOIETY_TRY(parse_bert(part, normalizer));
  } else if (type == "Prepend") {
    MOIETY_ASSIGN(const std::string_view content, part.text("prepend"));
    normalizer.add_prepend(std::string(content));
  } else if (type == "Strip") {
    MOIETY_ASSIGN(const bool left, part.flag("strip_left", true));
    MOIETY_ASSIGN(const bool right, part.flag("strip_right", true));
    normalizer.add_strip(left, right);
  } else if (type == "Replace") {
    MOIETY_ASSIGN(Regex pattern, parse_pattern(part));
    MOIETY_ASSIGN(const std::string_view content, part.text("content"));
    normalizer.add_replace(std::move(pattern), std::string(content));
  } else {
    return part.unsupported(fmt::format("normalizer {}", type));
  }
  return {};
}

Result<void> parse_pre_tokenizer(const JsonValue& part, PreTokenizer& pre_tokenizer) {
  MOIETY_ASSIGN(const std::string_view type, part.type());
  if (type == "Sequence") {
    MOIETY_ASSIGN(const auto steps, part.items("pretokenizers"));
    for (const JsonValue& step : steps) MOIETY_TRY(parse_pre_tokenizer(step, pre_tokenizer));
  } else if (type == "Split") {
    MOIETY_ASSIGN(Regex pattern, parse_pattern(part));
    MOIETY_ASSIGN(const SplitBehavior behavior, parse_behavior(part));
    MOIETY_ASSIGN(const bool invert, part.flag("invert", false));
    pre_tokenizer.add_split(std::move(pattern), behavior, invert);
  } else if (type == "CharDelimiterSplit") {
    MOIETY_ASSIGN(const std::string delimiter, parse_character(part, "delimiter"));
    MOIETY_ASSIGN(Regex pattern, Regex::literal(delimiter));
    pre_tokenizer.add_split(std::move(pattern), SplitBehavior::kRemoved, false);
  } else if (type == "Digits") {
    MOIETY_ASSIGN(const bool individual, part.flag("individual_digits", false));
    MOIETY_ASSIGN(Regex pattern, Regex::compile(kDigit));
    pre_tokenizer.add_split(std::move(pattern),
                            individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous,
                            false);
  } else if (type == "Punctuation") {
    SplitBehavior behavior = SplitBehavior::kIsolated;
    if (part.find("behavior")) {
      MOIETY_ASSIGN(behavior, parse_behavior(part));
    }
    pre_tokenizer.add_split(is_punctuation, behavior);
  } else if (type == "Whitespace") {
    pre_tokenizer.add_words();
  } else if (type == "WhitespaceSplit") {
    pre_tokenizer.add_split(is_white_space, SplitBehavior::kRemoved);
  } else if (type == "BertPreTokenizer") {
    pre_tokenizer.add_split(is_white_space, SplitBehavior::kRemoved);
    pre_tokenizer.add_split(is_punctuation, SplitBehavior::kIsolated);
  } else if (type == "UnicodeScripts") {
    pre_tokenizer.add_scripts();
  } else if (type == "FixedLength") {
    MOIETY_ASSIGN(const JsonValue length_json, part.at("length"));
    MOIETY_ASSIGN(const std::int32_t length, length_json.number(1 << 20, "a number"));
    if (length == 0) return length_json.wrong("is 0: pieces have 1 character at least");
    pre_tokenizer.add_fixed_length(static_cast<std::size_t>(length));
  } else if (type == "Metaspace") {
    MOIETY_ASSIGN(const Metaspace metaspace, parse_metaspace(part));
    pre_tokenizer.add_metaspace(metaspace.mark, metaspace.prepend);
    if (metaspace.split) {
      MOIETY_ASSIGN(Regex mark, Regex::literal(metaspace.mark));
      pre_tokenizer.add_split(std::move(mark), SplitBehavior::kMergedWithNext, false);
    }
  } else if (type == "ByteLevel") {
    MOIETY_TRY(parse_byte_level(part, pre_tokenizer));
  } else {
    return part.unsupported(fmt::format("pre_tokenizer {}", type));
  }
  return {};
}

Result<TokenDecoder> parse_decoder(const JsonValue& part) {
  MOIETY_ASSIGN(const std::string_view type, part.type());
  if (type == "Sequence") {
    MOIETY_ASSIGN(const auto list, part.items("decoders"));
    if (list.size() == 1) return parse_decoder(list[0]);
  }
  if (type == "ByteLevel") return TokenDecoder();
  DecoderSteps decoder;
  MOIETY_TRY(decoder.add(part));
  return TokenDecoder(std::move(decoder.steps), decoder.byte_fallback, std::move(decoder.fused));
}

Result<SpecialTokens> parse_post_processor(const JsonValue& part) {
  SpecialTokens special;
  MOIETY_ASSIGN(const std::string_view type, part.type());
  if (type == "Sequence") {
    MOIETY_ASSIGN(const auto list, part.items("processors"));
    for (const JsonValue& step : list) {
      MOIETY_ASSIGN(SpecialTokens added, parse_post_processor(step));
      if (added.before.empty() && added.after.empty()) continue;
      if (!special.before.empty() || !special.after.empty()) {
        return step.unsupported("a second processor that adds tokens");
      }
      special = std::move(added);
    }
  } else if (type == "TemplateProcessing") {
    MOIETY_TRY(add_template(part, special));
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    for (const char* key : {"cls", "sep"}) {  // [text, id]
      MOIETY_ASSIGN(const auto pair, part.items(key));
      if (pair.size() != 2) return part.wrong(fmt::format("{}: is not a token and its id", key));
      MOIETY_ASSIGN(const std::int32_t id, pair[1].token_id());
      (key == std::string_view("cls") ? special.before : special.after).push_back(id);
    }
  } else if (type != "ByteLevel") {  // which is about offsets only
    return part.unsupported(fmt::format("post_processor {}", type));
  }
  return special;
}

}  // namespace moiety
