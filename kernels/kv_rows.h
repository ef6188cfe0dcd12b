#pragma once

#include <cstddef>
#include <span>

#include "common/check.h"
#include "kernels/attention.h"

/// What storing into the KV cache and reading it share; internal to this folder.
namespace moiety::kernels {

/// Bytes of one KV head's part of one block.
inline std::ptrdiff_t head_bytes(const KvLayer& layer) {
  return std::ptrdiff_t{kKvBlockSize} * layer.head_dim *
         static_cast<std::ptrdiff_t>(dtype_bytes(layer.dtype));
}

inline void check_layer(const KvLayer& layer) {
  MOIETY_CHECK(layer.dtype == DType::kF32 || layer.dtype == DType::kBF16,
               "a KV cache is F32 or BF16");
  MOIETY_CHECK(layer.num_kv_heads > 0 && layer.head_dim > 0, "an empty KV layer");
}

inline void check_covered(std::span<const std::int32_t> block_table, std::int32_t position) {
  MOIETY_CHECK(
      position >= 0 && static_cast<std::size_t>(position / kKvBlockSize) < block_table.size(),
      "the block table does not cover the position");
}

/// Runs fn(index) for every index in [0, count), on this thread alone where that is faster.
template <class Fn>
void run_tasks(ThreadPool& pool, bool is_serial, std::size_t count, const Fn& fn) {
  if (!is_serial) return pool.parallel_for(count, [&](std::size_t i, std::size_t) { fn(i); });
  for (std::size_t i = 0; i < count; ++i) fn(i);
}

/// Whether row b is a later token of row a's sequence.
inline bool is_sequel(const AttentionRow& a, const AttentionRow& b) {
  return a.block_table.data() == b.block_table.data() && b.position > a.position;
}

}  // namespace moiety::kernels
