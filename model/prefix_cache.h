#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

namespace moiety {

struct GateMask;

/// Names the contents of a full KV block: SHA-256 over the name of the block before it and its own
/// tokens. The first block follows the name of the sequence's mask, so equal keys mean equal
/// tokens from position 0 under equal masks (the cache belongs to one model).
using BlockKey = std::array<std::uint8_t, 32>;

/// The key that a sequence's first block follows: a function of the kept experts, not of a
/// deployment's name. `mask` null: every expert.
BlockKey prefix_root(const GateMask* mask);

/// The key of the block after `before` that holds `tokens`.
BlockKey next_block_key(const BlockKey& before, std::span<const std::int32_t> tokens);

/// Hands out the blocks of a KvCache to sequences and remembers what full ones hold, so that a
/// later sequence with the same beginning need not compute it again.
///
/// A block is free, referenced by one or more sequences, or cached: published, not referenced, and
/// kept until its place is needed. take() evicts cached blocks, least recently used first. Only
/// blocks that are never written again may be published: full ones, computed without failure.
/// Whoever holds a block also holds those before it, and blocks are released last first, so a
/// block never outlives the ones that it follows. Not thread-safe: belongs to one step loop.
class PrefixCache {
 public:
  /// What is remembered of a published block.
  struct Cached {
    std::int32_t block = 0;
    double masked_mass = 0;  ///< summed over its tokens
  };

  /// Blocks 0 to num_blocks - 1. With `keep` false nothing is remembered.
  PrefixCache(std::int32_t num_blocks, bool keep);

  /// A block for one sequence; none when all are referenced.
  std::optional<std::int32_t> take();
  /// The published block of that name, referenced once more.
  std::optional<Cached> find(const BlockKey& key);
  /// Remembers what `block`, which the caller holds, is. Returns the block that the caller holds
  /// from now on: another one when the same contents had been published before (then `block` was
  /// released).
  std::int32_t publish(std::int32_t block, const BlockKey& key, double masked_mass);
  /// Gives back one reference to each, last first.
  void release(std::span<const std::int32_t> blocks);

  bool keeps() const { return keep_; }
  std::int32_t num_blocks() const { return static_cast<std::int32_t>(blocks_.size()); }
  /// Referenced by sequences.
  std::int32_t num_used() const { return num_blocks() - num_available(); }
  /// Published and not referenced.
  std::int32_t num_cached() const { return num_cached_; }
  /// What take() could hand out.
  std::int32_t num_available() const {
    return static_cast<std::int32_t>(free_.size()) + num_cached_;
  }
  std::uint64_t num_evicted() const { return num_evicted_; }

 private:
  static constexpr std::int32_t kNone = -1;
  struct Block {
    std::int32_t references = 0;
    bool published = false;
    std::int32_t older = kNone, newer = kNone;  // neighbours among cached blocks
    BlockKey key{};
    double masked_mass = 0;
  };
  struct KeyHash {
    std::size_t operator()(const BlockKey& key) const {
      std::size_t hash = 0;
      std::memcpy(&hash, key.data(), sizeof(hash));
      return hash;
    }
  };
  Block& at(std::int32_t block) { return blocks_.at(static_cast<std::size_t>(block)); }
  void release_one(std::int32_t block);
  void unlink(std::int32_t block);

  const bool keep_;
  std::vector<Block> blocks_;
  std::vector<std::int32_t> free_;
  std::unordered_map<BlockKey, std::int32_t, KeyHash> published_;
  std::int32_t oldest_ = kNone, newest_ = kNone;  // of the cached blocks
  std::int32_t num_cached_ = 0;
  std::uint64_t num_evicted_ = 0;
};

}  // namespace moiety
