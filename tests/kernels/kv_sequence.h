#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "tests/kernels/tolerance.h"

/// A cached sequence for tests of attention.
namespace moiety::kernels {

/// Heads, cache type and window of a layer.
struct AttentionShape {
  DType dtype;
  std::int32_t num_heads;
  std::int32_t num_kv_heads;
  std::int32_t head_dim;
  std::int32_t window = 0;
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(head_dim)); }
};

/// One sequence of `length` tokens whose k, v and q are known, in a pool of NaNs with scattered
/// blocks.
class KvSequence {
 public:
  KvSequence(const AttentionShape& shape, std::int32_t length, unsigned seed = 1)
      : shape_(shape), length_(length) {
    const auto kv_size = static_cast<std::size_t>(length * shape.num_kv_heads * shape.head_dim);
    k = random_floats(kv_size, seed);
    v = random_floats(kv_size, seed + 1);
    q = random_floats(static_cast<std::size_t>(length) * row_size(), seed + 2, 4);
    for (auto* values : {&k, &v, &q}) round_inputs(shape.dtype, *values);

    const std::int32_t blocks = (length + kKvBlockSize - 1) / kKvBlockSize;
    for (std::int32_t i = 0; i < blocks; ++i) table.push_back((i * 7 + 3) % (blocks + 10));
    std::sort(table.begin(), table.end());
    table.erase(std::unique(table.begin(), table.end()), table.end());
    for (std::int32_t next = blocks + 10; table.size() < static_cast<std::size_t>(blocks); ++next) {
      table.push_back(next);
    }
    std::reverse(table.begin(), table.end());
    // All ones is a NaN in either type: a read of a token that was never stored shows.
    const std::size_t bytes = static_cast<std::size_t>(2 * blocks + 20) * kKvBlockSize *
                              static_cast<std::size_t>(shape.num_kv_heads * shape.head_dim) *
                              dtype_bytes(shape.dtype);
    k_pool_.assign(bytes, std::byte{0xff});
    v_pool_.assign(bytes, std::byte{0xff});
    for (std::int32_t t = 0; t < length; ++t) store(t);
  }

  KvLayer layer() {
    return {shape_.dtype, k_pool_.data(), v_pool_.data(), shape_.num_kv_heads, shape_.head_dim};
  }
  void store(std::int32_t position) {
    const std::ptrdiff_t offset = std::ptrdiff_t{position} * shape_.num_kv_heads * shape_.head_dim;
    store_kv(layer(), table, position, k.data() + offset, v.data() + offset);
  }
  std::size_t row_size() const {
    return static_cast<std::size_t>(shape_.num_heads * shape_.head_dim);
  }
  std::size_t pool_bytes() const { return k_pool_.size(); }

  /// Rows [first, first + count) in one call.
  std::vector<float> run(Variant variant,
                         std::int32_t first,
                         std::int32_t count,
                         ThreadPool& pool) {
    std::vector<AttentionRow> rows;
    for (std::int32_t i = 0; i < count; ++i) rows.push_back({table, first + i});
    Guarded out(static_cast<std::size_t>(count) * row_size());
    attention(variant, layer(), rows, shape_.num_heads, shape_.scale(), shape_.window,
              &q[first * row_size()], out.data(), pool);
    EXPECT_TRUE(out.intact());
    return {out.span().begin(), out.span().end()};
  }

  /// The definition in double, and the bound of a float variant: the error of a score is the
  /// relative error of its probability.
  void expect_row(std::int32_t position,
                  std::vector<double>& expected,
                  std::vector<double>& bound) const {
    const std::int32_t group = shape_.num_heads / shape_.num_kv_heads;
    for (std::int32_t head = 0; head < shape_.num_heads; ++head) {
      const float* query =
          &q[position * row_size() + static_cast<std::size_t>(head * shape_.head_dim)];
      const std::int32_t first = shape_.window == 0 ? 0 : std::max(0, position - shape_.window + 1);
      std::vector<double> p;
      double score_error = 0;
      double score_range = 0;
      for (std::int32_t t = first; t <= position; ++t) {
        const float* key = k.data() + offset_of(t, head / group);
        double dot = 0;
        double magnitude = 0;
        for (std::int32_t d = 0; d < shape_.head_dim; ++d) {
          dot += static_cast<double>(query[d]) * key[d];
          magnitude += std::abs(static_cast<double>(query[d]) * key[d]);
        }
        p.push_back(dot * shape_.scale());
        score_error = std::max(
            score_error, 4 * std::sqrt(shape_.head_dim) * kUnitF32 * magnitude * shape_.scale());
        score_range = std::max(score_range, std::abs(p.back()));
      }
      double sum = 0;
      for (double& score : p) sum += score = std::exp(score);
      const double relative =
          2 * score_error + (8 * score_range + 4 * std::sqrt(p.size()) + 16) * kUnitF32;
      for (std::int32_t d = 0; d < shape_.head_dim; ++d) {
        double value = 0;
        double magnitude = 0;
        for (std::int32_t t = first; t <= position; ++t) {
          const double term = p[t - first] / sum * v[offset_of(t, head / group) + d];
          value += term;
          magnitude += std::abs(term);
        }
        expected.push_back(value);
        bound.push_back(relative * magnitude);
      }
    }
  }

  std::vector<float> k;
  std::vector<float> v;
  std::vector<float> q;
  std::vector<std::int32_t> table;

 private:
  std::size_t offset_of(std::int32_t token, std::int32_t kv_head) const {
    return static_cast<std::size_t>((token * shape_.num_kv_heads + kv_head) * shape_.head_dim);
  }
  AttentionShape shape_;
  std::int32_t length_;
  std::vector<std::byte> k_pool_;
  std::vector<std::byte> v_pool_;
};

}  // namespace moiety::kernels
