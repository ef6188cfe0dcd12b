#include "kernels/attention.h"

#include <cstring>

#include "common/check.h"
#include "kernels/implementations.h"

namespace moiety::kernels {
namespace {

static_assert(kBlockTokens == kKvBlockSize);

AttentionFn* attention_kernel(Variant variant) {
  switch (variant) {
    case Variant::kReference:
      return reference::attend;
    case Variant::kPlain:
      return plain::attend;
    case Variant::kAvx2:
      return avx2::attend;
  }
  check_failed("unknown variant", __FILE__, __LINE__);
}

/// Bytes of one KV head's part of one block.
std::ptrdiff_t head_bytes(const KvLayer& layer) {
  return std::ptrdiff_t{kKvBlockSize} * layer.head_dim *
         static_cast<std::ptrdiff_t>(dtype_bytes(layer.dtype));
}

void check_layer(const KvLayer& layer) {
  MOIETY_CHECK(layer.dtype == DType::kF32 || layer.dtype == DType::kBF16,
               "a KV cache is F32 or BF16");
  MOIETY_CHECK(layer.num_kv_heads > 0 && layer.head_dim > 0, "an empty KV layer");
}

void check_covered(std::span<const std::int32_t> block_table, std::int32_t position) {
  MOIETY_CHECK(
      position >= 0 && static_cast<std::size_t>(position / kKvBlockSize) < block_table.size(),
      "the block table does not cover the position");
}

void store_row(DType dtype, const float* source, std::int32_t size, std::byte* target) {
  if (dtype == DType::kF32) {
    std::memcpy(target, source, static_cast<std::size_t>(size) * sizeof(float));
    return;
  }
  auto* rounded = reinterpret_cast<bf16*>(target);
  for (std::int32_t i = 0; i < size; ++i) rounded[i] = float_to_bf16(source[i]);
}

}  // namespace

void store_kv(const KvLayer& layer,
              std::span<const std::int32_t> block_table,
              std::int32_t position,
              const float* k,
              const float* v) {
  check_layer(layer);
  check_covered(block_table, position);
  const std::ptrdiff_t block = block_table[static_cast<std::size_t>(position / kKvBlockSize)];
  const std::ptrdiff_t row_bytes = head_bytes(layer) / kKvBlockSize;
  for (std::int32_t head = 0; head < layer.num_kv_heads; ++head) {
    const std::ptrdiff_t target = (block * layer.num_kv_heads + head) * head_bytes(layer) +
                                  (position % kKvBlockSize) * row_bytes;
    const std::ptrdiff_t source = static_cast<std::ptrdiff_t>(head) * layer.head_dim;
    store_row(layer.dtype, k + source, layer.head_dim, layer.k + target);
    store_row(layer.dtype, v + source, layer.head_dim, layer.v + target);
  }
}

void attention(Variant variant,
               const KvLayer& layer,
               std::span<const AttentionRow> rows,
               std::int32_t num_heads,
               float scale,
               const float* q,
               float* out,
               ThreadPool& pool) {
  if (rows.empty()) return;
  check_layer(layer);
  MOIETY_CHECK(num_heads > 0 && num_heads % layer.num_kv_heads == 0,
               "query heads are not a multiple of KV heads");
  for (const AttentionRow& row : rows) check_covered(row.block_table, row.position);

  AttentionFn* kernel = attention_kernel(variant);
  const std::int32_t group = num_heads / layer.num_kv_heads;
  // Neighbouring tasks share a KV head, whose blocks then stay in the cache when the rows are of
  // one sequence.
  const std::size_t tasks = rows.size() * static_cast<std::size_t>(layer.num_kv_heads);
  pool.parallel_for(tasks, [&](std::size_t task, std::size_t) {
    const auto kv_head = static_cast<std::ptrdiff_t>(task / rows.size());
    const std::size_t row = task % rows.size();
    const std::ptrdiff_t first_head =
        static_cast<std::ptrdiff_t>(row) * num_heads + kv_head * group;
    kernel({.is_bf16 = layer.dtype == DType::kBF16,
            .k = layer.k + kv_head * head_bytes(layer),
            .v = layer.v + kv_head * head_bytes(layer),
            .block_bytes = layer.num_kv_heads * head_bytes(layer),
            .block_table = rows[row].block_table.data(),
            .tokens = rows[row].position + 1,
            .head_dim = layer.head_dim,
            .num_heads = group,
            .scale = scale,
            .q = q + first_head * layer.head_dim,
            .out = out + first_head * layer.head_dim});
  });
}

}  // namespace moiety::kernels
