#include "kernels/attention.h"

#include <algorithm>
#include <cstring>

#include "kernels/elementwise.h"
#include "tests/kernels/tolerance.h"

namespace moiety::kernels {
namespace {

struct Shape {
  DType dtype;
  std::int32_t num_heads;
  std::int32_t num_kv_heads;
  std::int32_t head_dim;
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(head_dim)); }
};

const Shape kShapes[] = {{DType::kF32, 2, 2, 16},  {DType::kBF16, 4, 2, 32},
                         {DType::kF32, 6, 2, 13},  {DType::kBF16, 3, 1, 45},
                         {DType::kBF16, 20, 2, 8}, {DType::kF32, 1, 1, 1}};

/// One sequence of `length` tokens whose k, v and q are known, in a pool of NaNs with scattered
/// blocks.
class Sequence {
 public:
  Sequence(const Shape& shape, std::int32_t length, unsigned seed = 1)
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
    attention(variant, layer(), rows, shape_.num_heads, shape_.scale(), &q[first * row_size()],
              out.data(), pool);
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
      std::vector<double> p;
      double score_error = 0;
      double score_range = 0;
      for (std::int32_t t = 0; t <= position; ++t) {
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
        for (std::int32_t t = 0; t <= position; ++t) {
          const double term = p[t] / sum * v[offset_of(t, head / group) + d];
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
  Shape shape_;
  std::int32_t length_;
  std::vector<std::byte> k_pool_;
  std::vector<std::byte> v_pool_;
};

class AttentionOf : public testing::TestWithParam<Variant> {};
INSTANTIATE_TEST_SUITE_P(Kernels,
                         AttentionOf,
                         testing::ValuesIn(supported_variants()),
                         variant_test_name);

TEST_P(AttentionOf, MatchesTheDefinition) {
  ThreadPool pool(2);
  for (const Shape& shape : kShapes) {
    for (std::int32_t length : {1, 2, 15, 16, 17, 33, 100}) {
      Sequence sequence(shape, length);
      std::vector<double> expected;
      std::vector<double> bound;
      for (std::int32_t t = 0; t < length; ++t) sequence.expect_row(t, expected, bound);
      EXPECT_TRUE(within(expected, sequence.run(GetParam(), 0, length, pool), bound))
          << dtype_name(shape.dtype) << " heads " << shape.num_heads << "/" << shape.num_kv_heads
          << " head_dim " << shape.head_dim << " length " << length;
    }
  }
}

TEST_P(AttentionOf, DecodePrefillAndEveryChunkingGiveTheSameBits) {
  constexpr std::int32_t kLength = 70;
  for (const Shape& shape : kShapes) {
    Sequence sequence(shape, kLength);
    ThreadPool one(1);
    const std::vector<float> prefill = sequence.run(GetParam(), 0, kLength, one);
    for (std::size_t threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      for (std::int32_t chunk : {1, 3, 16, 17, kLength}) {
        std::vector<float> all;
        for (std::int32_t first = 0; first < kLength; first += chunk) {
          const auto part = sequence.run(GetParam(), first, std::min(chunk, kLength - first), pool);
          all.insert(all.end(), part.begin(), part.end());
        }
        ASSERT_EQ(all.size(), prefill.size());
        EXPECT_EQ(std::memcmp(all.data(), prefill.data(), all.size() * sizeof(float)), 0)
            << "threads=" << threads << " chunk=" << chunk << " head_dim=" << shape.head_dim;
      }
    }
  }
}

TEST_P(AttentionOf, WhatFollowsInTheCacheDoesNotMatter) {
  // The decoding step sees only its own tokens; the later ones were stored by the time of the
  // prefill.
  const Shape shape = kShapes[1];
  ThreadPool pool(1);
  Sequence whole(shape, 40);
  const std::vector<float> prefill = whole.run(GetParam(), 0, 40, pool);
  for (std::int32_t position : {0, 14, 15, 16, 31, 38}) {
    Sequence growing(shape, 40);
    Sequence empty(shape, 1);
    std::vector<std::byte> k(growing.pool_bytes(), std::byte{0xff});
    std::vector<std::byte> v = k;
    const KvLayer layer{shape.dtype, k.data(), v.data(), shape.num_kv_heads, shape.head_dim};
    const std::ptrdiff_t token = shape.num_kv_heads * shape.head_dim;
    for (std::int32_t t = 0; t <= position; ++t) {
      store_kv(layer, growing.table, t, growing.k.data() + t * token, growing.v.data() + t * token);
    }
    const AttentionRow row{growing.table, position};
    Guarded out(growing.row_size());
    attention(GetParam(), layer, {&row, 1}, shape.num_heads, shape.scale(),
              &growing.q[position * growing.row_size()], out.data(), pool);
    EXPECT_EQ(std::memcmp(out.data(), &prefill[position * growing.row_size()],
                          growing.row_size() * sizeof(float)),
              0)
        << "position " << position;
  }
}

TEST_P(AttentionOf, RowsOfSeveralSequencesDoNotMix) {
  const Shape shape{DType::kBF16, 4, 4, 24};
  ThreadPool pool(2);
  Sequence first(shape, 20, 1);
  const std::vector<float> alone = first.run(GetParam(), 19, 1, pool);
  // A row of the same pool with another table and position beside it, before and after.
  const std::vector<std::int32_t> other_table(first.table.rbegin(), first.table.rend());
  const AttentionRow rows[] = {{first.table, 3}, {first.table, 19}, {other_table, 1}};
  std::vector<float> q(3 * first.row_size(), 0.25f);
  std::copy_n(&first.q[19 * first.row_size()], first.row_size(), &q[first.row_size()]);
  Guarded out(q.size());
  attention(GetParam(), first.layer(), rows, shape.num_heads, shape.scale(), q.data(), out.data(),
            pool);
  EXPECT_EQ(std::memcmp(out.data() + first.row_size(), alone.data(), alone.size() * sizeof(float)),
            0);
}

TEST_P(AttentionOf, LargeScoresDoNotOverflow) {
  const Shape shape{DType::kF32, 1, 1, 8};
  ThreadPool pool(1);
  Sequence sequence(shape, 50);
  for (float& value : sequence.q) value *= 1000;
  for (float value : sequence.run(GetParam(), 0, 50, pool)) {
    EXPECT_TRUE(std::isfinite(value));
    EXPECT_LE(std::abs(value), 1.0f);
  }
}

TEST_P(AttentionOf, NoRowsIsNoWork) {
  ThreadPool pool(1);
  Sequence sequence(kShapes[0], 1);
  EXPECT_TRUE(sequence.run(GetParam(), 0, 0, pool).empty());
}

TEST(StoreKv, TwiceIsOnceAndTouchesItsTokenOnly) {
  const Shape shape{DType::kBF16, 2, 2, 5};
  Sequence sequence(shape, 18);
  const std::size_t bytes = sequence.pool_bytes();
  const std::vector<std::byte> before(sequence.layer().k, sequence.layer().k + bytes);
  sequence.store(17);
  EXPECT_EQ(std::memcmp(before.data(), sequence.layer().k, bytes), 0);
  std::ranges::fill(sequence.k, 2.0f);
  sequence.store(17);
  std::size_t changed = 0;
  for (std::size_t i = 0; i + 1 < bytes; i += 2) {
    if (std::memcmp(&before[i], sequence.layer().k + i, 2) != 0) ++changed;
  }
  EXPECT_EQ(changed, 10u);
}

}  // namespace
}  // namespace moiety::kernels
