#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace moiety {

/// Byte-level BPE as `tokenizer.json` describes it. Immutable after loading; thread-safe.
class Tokenizer {
 public:
  /// Loads FOLDER/tokenizer.json. kInvalidArgument names the part that is not understood.
  static Result<Tokenizer> load(const std::filesystem::path& folder);
  /// From the text of a tokenizer.json.
  static Result<Tokenizer> parse(std::string_view json);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Token ids of a text. Added and special tokens in the text are recognised. Equals PyPI
  /// tokenizers' encode(text, add_special_tokens=False). Invalid UTF-8 is replaced by U+FFFD first.
  std::vector<std::int32_t> encode(std::string_view text) const;

  /// Bytes of the tokens, special tokens left out when `skip_special`; incomplete UTF-8 becomes
  /// U+FFFD.
  std::string decode(const std::vector<std::int32_t>& ids, bool skip_special = true) const;

  /// The raw bytes of one token (may be part of a character); empty for an id without a token.
  std::string_view token_bytes(std::int32_t id) const;
  bool is_special(std::int32_t id) const;
  /// Largest id + 1 (the model's vocabulary may be larger: padded).
  std::int32_t vocab_size() const;
  /// Id of an exact token text, or -1.
  std::int32_t token_id(std::string_view text) const;

 private:
  struct State;
  explicit Tokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Turns a stream of tokens into text without ever giving out part of a character: bytes of an
/// unfinished character wait for the next token. The concatenation of all push() results and
/// finish() equals Tokenizer::decode of all ids.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true);
  /// Text that became certain with this token; may be empty.
  std::string push(std::int32_t id);
  /// What is left: an unfinished character comes out as U+FFFD.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string pending_;
};

}  // namespace moiety
