#include "model/tokenizer_decoder.h"

#include <charconv>
#include <optional>
#include <utility>

#include "common/utf8.h"
#include "model/byte_level.h"

namespace moiety {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
/// A token's text, beside 32 times its spelling: there may be some 100 000 tokens.
constexpr std::size_t kMostTokenBytes = 4096;

// Bytes at the start of `text` that are at most `most` times `character`.
std::size_t start_of(std::string_view text, std::string_view character, std::size_t most) {
  std::size_t size = 0;
  for (std::size_t i = 0; i < most && text.substr(size).starts_with(character); ++i) {
    size += character.size();
  }
  return size;
}

// "<0xHH>"
std::optional<char> byte_of(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || !token.ends_with('>')) return std::nullopt;
  std::uint8_t byte = 0;
  const char* end = token.data() + 5;
  if (std::from_chars(token.data() + 3, end, byte, 16).ptr != end) return std::nullopt;
  return static_cast<char>(byte);
}

}  // namespace

TokenDecoder::TokenDecoder(std::vector<Step> steps, bool byte_fallback, Strip fused)
    : steps_(std::move(steps)),
      byte_level_(false),
      byte_fallback_(byte_fallback),
      fused_(std::move(fused)) {}

Result<TokenDecoder::Token> TokenDecoder::token(std::string_view spelled, bool is_first) const {
  if (byte_level_) return Token{byte_level_decode(spelled), false};
  const std::size_t most_bytes = kMostTokenBytes + 32 * spelled.size();
  MatchBudget budget(spelled.size());
  std::string text(spelled);
  for (const Step& step : steps_) {
    if (const auto* rule = std::get_if<Replace>(&step)) {
      MOIETY_ASSIGN(text, rule->pattern.replace_all(text, rule->content, most_bytes, budget));
    } else if (const auto* strip = std::get_if<Strip>(&step)) {
      text.erase(0, start_of(text, strip->character, strip->most));
    } else {
      const auto& metaspace = std::get<Metaspace>(step);
      MOIETY_ASSIGN(text,
                    metaspace.mark.replace_all(text, is_first && metaspace.drop_first ? "" : " ",
                                               most_bytes, budget));
    }
  }
  if (const auto byte = byte_of(text); byte && byte_fallback_)
    return Token{std::string(1, *byte), true};
  return Token{std::move(text), false};
}

bool TokenDecoder::first_differs() const {
  for (const Step& step : steps_) {
    const auto* mark = std::get_if<Metaspace>(&step);
    if (mark != nullptr && mark->drop_first) return true;
  }
  return false;
}

void TokenDecoder::push(const Token& token, DecodeState& state, std::string& text) const {
  ++state.num_tokens;
  if (byte_level_) {
    push_bytes(token, state, text);
  } else if (token.is_byte) {
    state.pending += token.text;
  } else {
    const std::size_t begin = text.size();
    end_run(state, text);
    state.earlier_bytes = text.size() - begin;
    append(token.text, state, text);
  }
}

void TokenDecoder::push_bytes(const Token& token, DecodeState& state, std::string& text) const {
  const std::size_t waited = state.pending.size();
  state.pending += token.text;
  const std::string_view bytes = state.pending;
  if (waited > 0 && bytes.size() > waited) {
    const std::string_view longer = bytes.substr(0, waited + 1);
    const bool goes_on = is_valid_utf8(longer) || unfinished_utf8_suffix(longer) == longer.size();
    if (!goes_on) state.earlier_bytes = kReplacement.size();
  }
  const std::size_t certain = bytes.size() - unfinished_utf8_suffix(bytes);
  append_replacing_invalid(bytes.substr(0, certain), text);
  state.pending.erase(0, certain);
}

void TokenDecoder::finish(DecodeState& state, std::string& text) const {
  if (byte_level_) {
    append_replacing_invalid(state.pending, text);
  } else {
    end_run(state, text);
  }
  state = {};
}

void TokenDecoder::end_run(DecodeState& state, std::string& text) const {
  if (state.pending.empty()) return;
  if (is_valid_utf8(state.pending)) {
    append(state.pending, state, text);
  } else {
    for (std::size_t i = 0; i < state.pending.size(); ++i) append(kReplacement, state, text);
  }
  state.pending.clear();
}

void TokenDecoder::append(std::string_view part, DecodeState& state, std::string& text) const {
  if (state.may_strip && !part.empty()) {
    const std::size_t size = start_of(part, fused_.character, fused_.most - state.num_stripped);
    state.num_stripped += fused_.character.empty() ? 0 : size / fused_.character.size();
    state.may_strip = size == part.size() && state.num_stripped < fused_.most;
    part.remove_prefix(size);
  }
  text += part;
}

}  // namespace moiety
