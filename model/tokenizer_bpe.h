#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"
#include "model/tokenizer_cache.h"
#include "model/tokenizer_merges.h"
#include "model/tokenizer_vocabulary.h"

namespace moiety {

/// Byte-pair encoding of pieces of text, over bytes or over characters. Immutable, thread-safe.
class BpeModel {
 public:
  enum class Alphabet {
    kBytes,       ///< tokens are spelled in the byte-level alphabet (byte_level.h)
    kCharacters,  ///< tokens are text
  };
  struct Options {
    Alphabet alphabet = Alphabet::kBytes;
    bool ignore_merges = false;  ///< a piece that is a token stays whole, whatever the merges say
    // Only with kCharacters; with kBytes every byte has a token.
    bool byte_fallback = false;  ///< a character without a token becomes its bytes' "<0xHH>" tokens
    std::int32_t unk_id = -1;    ///< else it becomes this token; -1: nothing
    bool fuse_unk = false;       ///< neighbours that became unk_id become one
  };

  /// Buffers that calls reuse, and the words encoded lately: one per thread and model.
  class Scratch {
    friend class BpeModel;
    MergeRules::Scratch merges;
    std::vector<std::int32_t> ids;
    std::string spelled;
    WordCache words;
  };

  /// Merges come in the order of their rank. kInvalidArgument: a byte that valid UTF-8 uses has no
  /// token (kBytes), or a merge uses or makes no token.
  static Result<BpeModel> build(Vocabulary vocab,
                                const std::vector<MergeRules::Merge>& merges,
                                const Options& options);

  /// Appends the ids of `piece`, a part of valid UTF-8 that is at most 2 GiB long (whole characters
  /// with kCharacters).
  /// False once `ids` are more than `most_ids`, or would be: that is seen before a long piece is
  /// worked through where it can be.
  bool encode(std::string_view piece,
              std::size_t most_ids,
              Scratch& scratch,
              std::vector<std::int32_t>& ids) const;

  const Vocabulary& vocab() const { return vocab_; }
  const Options& options() const { return options_; }

 private:
  BpeModel() = default;
  Result<void> find_bytes();
  void encode_part(std::string_view part, Scratch& scratch, std::vector<std::int32_t>& ids) const;
  void encode_slowly(std::string_view part, Scratch& scratch) const;
  void spell_bytes(std::string_view part, std::vector<std::int32_t>& ids) const;
  void spell_characters(std::string_view part, std::vector<std::int32_t>& ids) const;
  std::int32_t character_id(char32_t value, std::string_view character) const;
  /// Bytes of the first part of `piece` that merges do not join with what follows.
  std::size_t first_part(std::string_view piece) const;

  Options options_;
  Vocabulary vocab_;
  MergeRules merges_;
  std::array<std::int32_t, 256> byte_ids_{};  // tokens of bytes, or of byte_fallback; -1: none
  std::vector<std::int32_t> character_ids_;   // kCharacters: by code point below 0x10000; -1: none
  std::size_t longest_bytes_ = 0;             // kBytes: no token stands for more bytes
  bool drops_unknown_ = false;                // a character may leave no token
  bool may_part_ = false;  // kCharacters: pieces may be cut where merges may not join
};

}  // namespace moiety
