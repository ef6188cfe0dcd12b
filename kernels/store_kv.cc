#include <vector>

#include "kernels/attention.h"
#include "kernels/implementations.h"
#include "kernels/kv_rows.h"

namespace moiety::kernels {
namespace {

/// All of them write the same bytes, so the fastest will do for every variant.
StoreFn* store_kernel() {
  static StoreFn* const kernel = widest(plain::store_kv, avx2::store_kv, avx512::store_kv);
  return kernel;
}

/// Stores rows [first, first + count), successive tokens in one block.
void store_run(const KvLayer& layer,
               std::span<const AttentionRow> rows,
               std::size_t first,
               std::size_t count,
               const float* k,
               const float* v) {
  const AttentionRow& row = rows[first];
  const std::ptrdiff_t block =
      row.block_table[static_cast<std::size_t>(row.position / kKvBlockSize)];
  const std::ptrdiff_t stride = std::ptrdiff_t{layer.num_kv_heads} * layer.head_dim;
  for (std::int32_t head = 0; head < layer.num_kv_heads; ++head) {
    const std::ptrdiff_t target = (block * layer.num_kv_heads + head) * head_bytes(layer);
    const std::ptrdiff_t source =
        static_cast<std::ptrdiff_t>(first) * stride + std::ptrdiff_t{head} * layer.head_dim;
    store_kernel()({.is_bf16 = layer.dtype == DType::kBF16,
                    .k = layer.k + target,
                    .v = layer.v + target,
                    .head_dim = layer.head_dim,
                    .token = row.position % kKvBlockSize,
                    .count = static_cast<std::int32_t>(count),
                    .new_k = k + source,
                    .new_v = v + source,
                    .stride = stride});
  }
}

}  // namespace

void store_kv(const KvLayer& layer,
              std::span<const std::int32_t> block_table,
              std::int32_t position,
              const float* k,
              const float* v) {
  check_layer(layer);
  check_covered(block_table, position);
  const AttentionRow row{block_table, position};
  store_run(layer, {&row, 1}, 0, 1, k, v);
}

void store_kv(const KvLayer& layer,
              std::span<const AttentionRow> rows,
              const float* k,
              const float* v,
              ThreadPool& pool) {
  constexpr std::size_t kSerialFloats = 8192;
  check_layer(layer);
  struct Run {
    std::size_t first;
    std::size_t count;
  };
  std::vector<Run> runs;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    check_covered(rows[i].block_table, rows[i].position);
    if (i > 0 && is_sequel(rows[i - 1], rows[i]) && rows[i].position == rows[i - 1].position + 1 &&
        rows[i].position % kKvBlockSize != 0) {
      ++runs.back().count;
    } else {
      runs.push_back({i, 1});
    }
  }
  const std::size_t floats = rows.size() * static_cast<std::size_t>(layer.num_kv_heads) *
                             static_cast<std::size_t>(layer.head_dim);
  run_tasks(pool, floats < kSerialFloats, runs.size(),
            [&](std::size_t i) { store_run(layer, rows, runs[i].first, runs[i].count, k, v); });
}

}  // namespace moiety::kernels
