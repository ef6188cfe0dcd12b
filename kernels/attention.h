#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/dtype.h"
#include "common/thread_pool.h"
#include "kernels/variant.h"

namespace moiety::kernels {

/// Tokens per KV block. One constant: the attention's sums walk blocks of this size whatever the
/// batch.
inline constexpr std::int32_t kKvBlockSize = 16;

/// One layer's pool of KV blocks.
///   k, v  [num_blocks, num_kv_heads, kKvBlockSize * head_dim]   dtype F32 or BF16
/// How tokens lie in a KV head's part of a block is store_kv's affair (kv_layout.h); 64-byte
/// aligned pools are faster.
struct KvLayer {
  DType dtype = DType::kF32;
  std::byte* k = nullptr;
  std::byte* v = nullptr;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
};

/// One token of a sequence.
struct AttentionRow {
  std::span<const std::int32_t> block_table;  ///< covers positions [0, position]
  std::int32_t position = 0;                  ///< attends up to here, itself included
};

/// Stores one token's k and v ([num_kv_heads, head_dim] floats; BF16 rounds to nearest even) at
/// `position` of the sequence that `block_table` describes. Storing the same token twice changes
/// nothing. Other threads may store other tokens at the same time.
void store_kv(const KvLayer& layer,
              std::span<const std::int32_t> block_table,
              std::int32_t position,
              const float* k,
              const float* v);

/// The same for many tokens, k and v [rows, num_kv_heads, head_dim], and faster than one by one:
/// neighbouring rows of one block are stored by one thread.
void store_kv(const KvLayer& layer,
              std::span<const AttentionRow> rows,
              const float* k,
              const float* v,
              ThreadPool& pool);

/// Paged causal attention: out = softmax(scale q k^T) v, each head of a row on its own; query head
/// h reads KV head h / (num_heads / num_kv_heads).
///
///   q    [rows, num_heads, head_dim]   float, BF16 values where the cache is BF16
///   out  [rows, num_heads, head_dim]   must not alias q
///
///   window       0: a row attends to [0, position]; otherwise to (position - window, position]
///
/// The sums of a row depend on its position, the window and the cached values only, so decode,
/// prefill and every chunking give the same bits. k and v of every row must have been stored
/// before; blocks wholly before the window are not read, nor are their entries in the table.
void attention(Variant variant,
               const KvLayer& layer,
               std::span<const AttentionRow> rows,
               std::int32_t num_heads,
               float scale,
               std::int32_t window,
               const float* q,
               float* out,
               ThreadPool& pool);

}  // namespace moiety::kernels
