#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/result.h"

namespace moiety {

struct StringHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const {
    return std::hash<std::string_view>{}(text);
  }
};
/// Token text to id, looked up without making a std::string.
using TokenMap = std::unordered_map<std::string, std::int32_t, StringHash, std::equal_to<>>;

/// Byte-pair encoding over bytes. Immutable, thread-safe.
///
/// Merges the pair of the lowest rank, the leftmost first, until none is left, as PyPI tokenizers
/// does: O(n log n) in the length of the piece.
class BpeModel {
 public:
  struct Merge {
    std::string left;
    std::string right;
  };

  /// Buffers that calls reuse; one per thread.
  class Scratch {
    friend class BpeModel;
    struct Symbol {
      std::int32_t id;  // -1: merged into an earlier one
      std::int32_t previous;
      std::int32_t next;
    };
    std::vector<Symbol> symbols;
    std::vector<std::uint64_t> queue;  // rank << 32 | position, a heap with the least on top
  };

  /// `vocab` spells tokens in the byte-level alphabet (byte_level.h). Merges come in the order of
  /// their rank. With `ignore_merges`, a piece that is a token stays whole, whatever the merges
  /// say. kInvalidArgument: a byte that valid UTF-8 uses has no token, or a merge uses or makes no
  /// token.
  static Result<BpeModel> build(TokenMap vocab,
                                const std::vector<Merge>& merges,
                                bool ignore_merges);

  /// Appends the ids of `piece`, a part of valid UTF-8 that is at most 2 GiB long.
  void encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& ids) const;

  const TokenMap& vocab() const { return vocab_; }

 private:
  struct Rule {
    std::uint64_t pair;  // left << 32 | right; kNoPair: a free place
    std::uint32_t rank;
    std::int32_t merged;
  };
  static constexpr std::uint64_t kNoPair = ~std::uint64_t{0};

  BpeModel() = default;
  std::size_t place_of(std::uint64_t pair) const;
  const Rule* find(std::int32_t left, std::int32_t right) const;
  void enqueue(const Scratch::Symbol& left, std::int32_t position, Scratch& scratch) const;
  void merge_all(Scratch& scratch) const;

  TokenMap vocab_;
  std::array<std::int32_t, 256> byte_ids_{};
  std::vector<Rule> rules_;           // open addressing, a power of two, at most half full
  std::vector<std::int32_t> merged_;  // by rank
  bool ignore_merges_ = false;
};

}  // namespace moiety
