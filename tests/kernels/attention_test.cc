#include "kernels/attention.h"

#include <cstring>

#include "tests/kernels/kv_sequence.h"

namespace moiety::kernels {
namespace {

const AttentionShape kShapes[] = {
    {DType::kF32, 2, 2, 16},     {DType::kBF16, 4, 2, 32},   {DType::kF32, 6, 2, 13},
    {DType::kBF16, 3, 1, 45},    {DType::kBF16, 20, 2, 8},   {DType::kF32, 1, 1, 1},
    {DType::kBF16, 4, 2, 32, 1}, {DType::kF32, 6, 2, 13, 5}, {DType::kBF16, 4, 1, 24, 16},
    {DType::kF32, 2, 2, 10, 33}, {DType::kBF16, 8, 1, 2},    {DType::kBF16, 2, 2, 64, 70},
    {DType::kBF16, 7, 1, 80},    {DType::kF32, 2, 1, 130},   {DType::kBF16, 1, 1, 256},
};

class AttentionOf : public testing::TestWithParam<Variant> {};
INSTANTIATE_TEST_SUITE_P(Kernels,
                         AttentionOf,
                         testing::ValuesIn(supported_variants()),
                         variant_test_name);

TEST_P(AttentionOf, MatchesTheDefinition) {
  ThreadPool pool(2);
  for (const AttentionShape& shape : kShapes) {
    for (std::int32_t length : {1, 2, 15, 16, 17, 33, 100}) {
      KvSequence sequence(shape, length);
      std::vector<double> expected;
      std::vector<double> bound;
      for (std::int32_t t = 0; t < length; ++t) sequence.expect_row(t, expected, bound);
      EXPECT_TRUE(within(expected, sequence.run(GetParam(), 0, length, pool), bound))
          << dtype_name(shape.dtype) << " heads " << shape.num_heads << "/" << shape.num_kv_heads
          << " head_dim " << shape.head_dim << " window " << shape.window << " length " << length;
    }
  }
}

TEST_P(AttentionOf, DecodePrefillAndEveryChunkingGiveTheSameBits) {
  constexpr std::int32_t kLength = 70;
  for (const AttentionShape& shape : kShapes) {
    KvSequence sequence(shape, kLength);
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
  const AttentionShape shape = kShapes[1];
  ThreadPool pool(1);
  KvSequence whole(shape, 40);
  const std::vector<float> prefill = whole.run(GetParam(), 0, 40, pool);
  for (std::int32_t position : {0, 14, 15, 16, 31, 38}) {
    KvSequence growing(shape, 40);
    std::vector<std::byte> k(growing.pool_bytes(), std::byte{0xff});
    std::vector<std::byte> v = k;
    const KvLayer layer{shape.dtype, k.data(), v.data(), shape.num_kv_heads, shape.head_dim};
    const std::ptrdiff_t token = shape.num_kv_heads * shape.head_dim;
    for (std::int32_t t = 0; t <= position; ++t) {
      store_kv(layer, growing.table, t, growing.k.data() + t * token, growing.v.data() + t * token);
    }
    const AttentionRow row{growing.table, position};
    Guarded out(growing.row_size());
    attention(GetParam(), layer, {&row, 1}, shape.num_heads, shape.scale(), shape.window,
              &growing.q[position * growing.row_size()], out.data(), pool);
    EXPECT_EQ(std::memcmp(out.data(), &prefill[position * growing.row_size()],
                          growing.row_size() * sizeof(float)),
              0)
        << "position " << position;
  }
}

TEST_P(AttentionOf, RowsOfSeveralSequencesDoNotMix) {
  const AttentionShape shape{DType::kBF16, 4, 4, 24};
  ThreadPool pool(2);
  KvSequence first(shape, 20, 1);
  const std::vector<float> alone = first.run(GetParam(), 19, 1, pool);
  // A row of the same pool with another table and position beside it, before and after.
  const std::vector<std::int32_t> other_table(first.table.rbegin(), first.table.rend());
  const AttentionRow rows[] = {{first.table, 3}, {first.table, 19}, {other_table, 1}};
  std::vector<float> q(3 * first.row_size(), 0.25f);
  std::copy_n(&first.q[19 * first.row_size()], first.row_size(), &q[first.row_size()]);
  Guarded out(q.size());
  attention(GetParam(), first.layer(), rows, shape.num_heads, shape.scale(), shape.window, q.data(),
            out.data(), pool);
  EXPECT_EQ(std::memcmp(out.data() + first.row_size(), alone.data(), alone.size() * sizeof(float)),
            0);
}

TEST_P(AttentionOf, LongContextsMatchTheDefinition) {
  // The sums of long contexts are made of parts of 512 tokens.
  ThreadPool pool(2);
  for (const AttentionShape& shape :
       {AttentionShape{DType::kBF16, 2, 1, 48}, AttentionShape{DType::kF32, 2, 2, 20, 600}}) {
    KvSequence sequence(shape, 1100);
    for (std::int32_t first : {505, 1015, 1090}) {
      std::vector<double> expected;
      std::vector<double> bound;
      for (std::int32_t t = first; t < first + 10; ++t) sequence.expect_row(t, expected, bound);
      EXPECT_TRUE(within(expected, sequence.run(GetParam(), first, 10, pool), bound))
          << "head_dim " << shape.head_dim << " rows from " << first;
    }
  }
}

TEST_P(AttentionOf, LargeScoresDoNotOverflow) {
  const AttentionShape shape{DType::kF32, 1, 1, 8};
  ThreadPool pool(1);
  KvSequence sequence(shape, 50);
  for (float& value : sequence.q) value *= 1000;
  for (float value : sequence.run(GetParam(), 0, 50, pool)) {
    EXPECT_TRUE(std::isfinite(value));
    EXPECT_LE(std::abs(value), 1.0f);
  }
}

TEST_P(AttentionOf, NoRowsIsNoWork) {
  ThreadPool pool(1);
  KvSequence sequence(kShapes[0], 1);
  EXPECT_TRUE(sequence.run(GetParam(), 0, 0, pool).empty());
}

}  // namespace
}  // namespace moiety::kernels
