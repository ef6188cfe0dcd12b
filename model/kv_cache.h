#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "checkpoint/architecture.h"
#include "common/result.h"
#include "kernels/attention.h"

namespace moiety {

/// A pool of KV blocks of kernels::kKvBlockSize tokens for all layers, and a plain list of free
/// ones (the step loop hands out blocks through a PrefixCache instead). A block index means the
/// same block in every layer. Not thread-safe: belongs to one step loop.
class KvCache {
 public:
  KvCache(const Architecture& architecture, DType dtype, std::int32_t num_blocks);

  /// Bytes of one block over all layers.
  static std::size_t block_bytes(const Architecture& architecture, DType dtype);
  /// Blocks that `num_tokens` tokens need.
  static std::int32_t blocks_for(std::int64_t num_tokens);

  std::int32_t num_blocks() const { return num_blocks_; }
  std::int32_t num_free() const { return static_cast<std::int32_t>(free_.size()); }

  /// Takes `count` blocks; kResourceExhausted (and none taken) when fewer are free.
  Result<std::vector<std::int32_t>> allocate(std::int32_t count);
  void release(std::span<const std::int32_t> blocks);

  kernels::KvLayer layer(std::int32_t index);

 private:
  DType dtype_;
  std::int32_t num_blocks_;
  std::int32_t num_kv_heads_;
  std::int32_t head_dim_;
  std::size_t bytes_per_tensor_;  // of one layer's k (or v)
  struct Free {
    void operator()(std::byte* memory) const;
  };
  // Per layer: k, then v, from the first address that is a multiple of 64. Memory that no sequence
  // has used yet is not touched.
  std::vector<std::unique_ptr<std::byte[], Free>> storage_;
  std::vector<std::int32_t> free_;
};

}  // namespace moiety
