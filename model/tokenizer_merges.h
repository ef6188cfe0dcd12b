#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"
#include "model/tokenizer_vocabulary.h"

namespace moiety {

/// The merge rules of byte-pair encoding. Immutable after build(), thread-safe.
class MergeRules {
 public:
  /// Two tokens whose concatenation is one; the place in the list is the rank.
  struct Merge {
    std::string_view left;
    std::string_view right;
  };

  /// Buffers that calls reuse; one per thread.
  class Scratch {
    friend class MergeRules;
    struct Symbol {
      std::int32_t id;  // -1: merged into an earlier one
      std::int32_t previous;
      std::int32_t next;
    };
    std::vector<Symbol> symbols;
    std::vector<std::uint64_t> queue;  // rank << 32 | position, a heap with the least on top
  };

  /// kInvalidArgument: a rule uses or makes no token of `vocab`. Of two rules for one pair the
  /// later one holds.
  static Result<MergeRules> build(const Vocabulary& vocab, const std::vector<Merge>& merges);

  /// Merges the pair of the lowest rank, the leftmost first, until none is left, as PyPI tokenizers
  /// does. Replaces `ids` (fewer than 2^31) by what remains. O(n log n).
  void apply(std::vector<std::int32_t>& ids, Scratch& scratch) const;

  /// False when no rule joins a token that ends in `left` with one that starts with `right`: then
  /// no merge ever crosses this boundary, and both sides can be merged by themselves.
  bool may_join(char32_t left, char32_t right) const {
    const std::size_t bit = bit_of(left, right);
    return (joins_[bit / 64] >> bit % 64 & 1) != 0;
  }
  /// True when a rule starts or ends with this token.
  bool uses(std::int32_t id) const;

 private:
  struct Rule {
    std::uint64_t pair;    // left << 32 | right; kNone: a free place
    std::uint64_t result;  // rank << 32 | merged
  };
  static constexpr std::uint64_t kNone = ~std::uint64_t{0};
  static constexpr std::size_t kJoinBits = 1 << 18;
  static constexpr std::size_t kPairBits = 1 << 22;
  static constexpr std::uint32_t kLowIds = 288;  // tokens of one byte have low ids

  static std::size_t bit_of(char32_t left, char32_t right) {
    const std::uint64_t pair = std::uint64_t{left} << 32 | right;
    return pair * 0x9E3779B97F4A7C15u >> (64 - 18);
  }
  static std::uint64_t hash_of(std::uint64_t pair);
  std::size_t place_of(std::uint64_t pair) const;
  /// rank << 32 | merged of the rule for a pair, or kNone.
  std::uint64_t find(std::int32_t left, std::int32_t right) const;
  void merge_few(std::vector<std::int32_t>& ids) const;
  void merge_many(std::vector<std::int32_t>& ids, Scratch& scratch) const;
  void enqueue(const Scratch::Symbol& left, std::int32_t position, Scratch& scratch) const;

  std::vector<Rule> rules_;               // open addressing, a power of two, at most half full
  std::vector<std::uint64_t> low_rules_;  // what find() gives for two low ids
  std::vector<std::uint64_t> pairs_;  // kPairBits; most pairs without a rule stop here, in cache
  std::vector<std::uint64_t> joins_;  // kJoinBits; a set bit may stand for several pairs
  std::vector<bool> used_;            // by id
};

}  // namespace moiety
