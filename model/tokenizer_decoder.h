#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "model/tokenizer_regex.h"

namespace moiety {

/// What a sequence of tokens left behind for the ones that follow it.
struct DecodeState {
  std::string pending;            ///< bytes that are no text yet
  std::size_t earlier_bytes = 0;  ///< of the text: a character that tokens before it had begun
  std::uint64_t num_tokens = 0;   ///< so far
  std::size_t num_stripped = 0;   ///< characters taken off the start of the text
  bool may_strip = true;          ///< nothing but those came so far
};

/// The decoder of a tokenizer.json: joins tokens to text. Immutable, thread-safe.
///
/// Either tokens are bytes, and broken UTF-8 becomes U+FFFD; or tokens are text, of which some
/// (byte_fallback) stand for a byte: a run of those is text if all of it is valid UTF-8, else one
/// U+FFFD for each. What a run is shows only at its end, so that it is held back until then.
class TokenDecoder {
 public:
  /// How one token is rewritten before tokens are joined.
  struct Replace {
    Regex pattern;
    std::string content;
  };
  struct Strip {
    std::string character;
    std::size_t most = 0;  ///< times that it is taken off the start
  };
  struct Metaspace {
    Regex mark;               ///< becomes a space,
    bool drop_first = false;  ///< in the first token nothing
  };
  using Step = std::variant<Replace, Strip, Metaspace>;

  /// A token as it is inside of a text.
  struct Token {
    std::string text;  ///< bytes; the byte itself when it stands for one
    bool is_byte = false;
  };

  TokenDecoder() = default;  ///< of tokens that are bytes
  /// Of tokens that are text; `fused` takes characters off the start of the joined text.
  TokenDecoder(std::vector<Step> steps, bool byte_fallback, Strip fused);

  bool is_byte_level() const { return byte_level_; }
  /// The token as the vocabulary spells it, rewritten; `is_first` of all. kResourceExhausted: a
  /// pattern failed (see Regex::find_all).
  Result<Token> token(std::string_view spelled, bool is_first) const;
  /// True when token() depends on `is_first`.
  bool first_differs() const;

  /// Appends the text that became certain with this token.
  void push(const Token& token, DecodeState& state, std::string& text) const;
  /// Appends what is left, and starts again.
  void finish(DecodeState& state, std::string& text) const;

 private:
  void push_bytes(const Token& token, DecodeState& state, std::string& text) const;
  void end_run(DecodeState& state, std::string& text) const;
  void append(std::string_view part, DecodeState& state, std::string& text) const;

  std::vector<Step> steps_;
  bool byte_level_ = true;
  bool byte_fallback_ = false;
  Strip fused_;
};

}  // namespace moiety
