#include "model/prefix_cache.h"

#include <openssl/evp.h>

#include "common/check.h"
#include "model/model.h"

namespace moiety {
namespace {

BlockKey sha256(std::span<const std::byte> bytes) {
  static const EVP_MD* const algorithm = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  BlockKey key;
  unsigned int size = 0;
  MOIETY_CHECK(EVP_Digest(bytes.data(), bytes.size(), key.data(), &size, algorithm, nullptr) == 1 &&
                   size == key.size(),
               "SHA-256");
  return key;
}

}  // namespace

BlockKey prefix_root(const GateMask* mask) {
  // Layers are told apart by their lengths: an empty one (it keeps all) has length 0.
  std::vector<std::byte> bytes;
  if (mask != nullptr) {
    for (const std::vector<std::uint8_t>& layer : mask->kept) {
      const std::uint64_t size = layer.size();
      const auto length = std::as_bytes(std::span(&size, 1));
      bytes.insert(bytes.end(), length.begin(), length.end());
      const auto kept = std::as_bytes(std::span(layer));
      bytes.insert(bytes.end(), kept.begin(), kept.end());
    }
  }
  return sha256(bytes);
}

BlockKey next_block_key(const BlockKey& before, std::span<const std::int32_t> tokens) {
  std::array<std::byte, sizeof(BlockKey) + kernels::kKvBlockSize * sizeof(std::int32_t)> bytes;
  MOIETY_CHECK(tokens.size() == kernels::kKvBlockSize, "only full blocks have a key");
  std::memcpy(bytes.data(), before.data(), before.size());
  std::memcpy(bytes.data() + before.size(), tokens.data(), tokens.size_bytes());
  return sha256(bytes);
}

PrefixCache::PrefixCache(std::int32_t num_blocks, bool keep)
    : keep_(keep), blocks_(static_cast<std::size_t>(num_blocks)) {
  MOIETY_CHECK(num_blocks > 0, "a KV cache needs at least one block");
  free_.reserve(blocks_.size());
  for (std::int32_t block = num_blocks; block-- > 0;) free_.push_back(block);
}

void PrefixCache::unlink(std::int32_t block) {
  Block& b = at(block);
  (b.older == kNone ? oldest_ : at(b.older).newer) = b.newer;
  (b.newer == kNone ? newest_ : at(b.newer).older) = b.older;
  b.older = b.newer = kNone;
  --num_cached_;
}

std::optional<std::int32_t> PrefixCache::take() {
  std::int32_t block = kNone;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else if (oldest_ != kNone) {
    block = oldest_;
    unlink(block);
    published_.erase(at(block).key);
    at(block).published = false;
    ++num_evicted_;
  } else {
    return std::nullopt;
  }
  at(block).references = 1;
  return block;
}

std::optional<PrefixCache::Cached> PrefixCache::find(const BlockKey& key) {
  const auto it = published_.find(key);
  if (it == published_.end()) return std::nullopt;
  Block& b = at(it->second);
  if (b.references++ == 0) unlink(it->second);
  return Cached{it->second, b.masked_mass};
}

std::int32_t PrefixCache::publish(std::int32_t block, const BlockKey& key, double masked_mass) {
  if (!keep_) return block;
  Block& b = at(block);
  MOIETY_CHECK(b.references == 1 && !b.published, "a block that others can see is published");
  if (const auto other = find(key)) {
    release_one(block);
    return other->block;
  }
  b.published = true;
  b.key = key;
  b.masked_mass = masked_mass;
  published_.emplace(key, block);
  return block;
}

void PrefixCache::release_one(std::int32_t block) {
  Block& b = at(block);
  MOIETY_CHECK(b.references > 0, "a KV block is released that nobody holds");
  if (--b.references > 0) return;
  if (!b.published) {
    free_.push_back(block);
    return;
  }
  b.older = newest_;
  (newest_ == kNone ? oldest_ : at(newest_).newer) = block;
  newest_ = block;
  ++num_cached_;
}

void PrefixCache::release(std::span<const std::int32_t> blocks) {
  for (std::size_t i = blocks.size(); i-- > 0;) release_one(blocks[i]);
}

}  // namespace moiety
