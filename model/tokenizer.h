#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"
#include "model/special_tokens.h"
#include "model/tokenizer_decoder.h"

namespace moiety {

/// BPE over bytes or characters as `tokenizer.json` describes it. Immutable after loading;
/// thread-safe.
class Tokenizer {
 public:
  static constexpr std::size_t kAnyNumber = std::numeric_limits<std::size_t>::max();

  /// Loads FOLDER/tokenizer.json and, if it is there, FOLDER/tokenizer_config.json.
  /// kInvalidArgument names the part that is not understood.
  static Result<Tokenizer> load(const std::filesystem::path& folder);
  /// From the text of a tokenizer.json.
  static Result<Tokenizer> parse(std::string_view json);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Token ids of a text. Added and special tokens in the text are recognised. Equals PyPI
  /// tokenizers' encode(text, add_special_tokens=...): with `add_special_tokens`, what the files
  /// put around a text (such as a token that begins it) is there, too. Invalid UTF-8 is replaced by
  /// U+FFFD first. kInvalidArgument: the text has more than `most_tokens`, which is known before
  /// all of a long text is worked through. kResourceExhausted: a pattern of the file needs too many
  /// steps for this text, or its rewriting makes too much of it.
  Result<std::vector<std::int32_t>> encode(std::string_view text,
                                           bool add_special_tokens = false,
                                           std::size_t most_tokens = kAnyNumber) const;

  /// Text of the tokens, special tokens left out when `skip_special`; incomplete UTF-8 becomes
  /// U+FFFD.
  std::string decode(const std::vector<std::int32_t>& ids, bool skip_special = true) const;

  /// The bytes of one token inside of a text (may be part of a character); empty for an id without
  /// a token.
  std::string_view token_bytes(std::int32_t id) const;
  bool is_special(std::int32_t id) const;
  /// What encode() puts around a text when asked to.
  const SpecialTokens& special_tokens() const;
  /// Largest id + 1 (the model's vocabulary may be larger: padded).
  std::int32_t vocab_size() const;
  /// Id of a token as the file spells it, or -1.
  std::int32_t token_id(std::string_view text) const;

 private:
  friend class StreamDecoder;
  struct State;
  void push(std::int32_t id, DecodeState& state, std::string& text) const;
  void finish(DecodeState& state, std::string& text) const;
  explicit Tokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Turns a stream of tokens into text without ever giving out part of a character: bytes of an
/// unfinished character (with byte_fallback: a run of tokens of bytes) wait for the next token. The
/// concatenation of all push() results and finish() equals Tokenizer::decode of all ids.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true);
  /// Text that became certain with this token; may be empty.
  std::string push(std::int32_t id);
  /// Bytes at the start of the last push()'s text that belong to the tokens before it: a character
  /// that they began and this one did not finish.
  std::size_t earlier_bytes() const { return state_.earlier_bytes; }
  /// What is left: an unfinished character comes out as U+FFFD.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  DecodeState state_;
};

}  // namespace moiety
