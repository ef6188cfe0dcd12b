// Within a variant a row's attention has the same bits whatever is computed beside it.
#include <cstring>
#include <map>
#include <random>
#include <utility>

#include "tests/kernels/kv_sequence.h"

namespace moiety::kernels {
namespace {

constexpr std::int32_t kHeadDimOdd = 45;

const AttentionShape kShapes[] = {
    {DType::kBF16, 4, 4, 64},        {DType::kF32, 4, 2, 16},
    {DType::kBF16, 6, 2, 2},         {DType::kBF16, 4, 1, kHeadDimOdd, 40},
    {DType::kF32, 5, 1, 13, 1},      {DType::kBF16, 7, 1, 80, 130},
    {DType::kBF16, 8, 1, 24},        {DType::kF32, 20, 1, 8, 600},
    {DType::kBF16, 2, 2, 256, 17},   {DType::kF32, 6, 2, 72},
    {DType::kBF16, 16, 2, 130, 100},
};

/// Several sequences in one pool of blocks, and each row's result when it is alone.
class Batch {
 public:
  using Row = std::pair<std::size_t, std::int32_t>;  // sequence, position

  Batch(const AttentionShape& shape, std::vector<std::int32_t> lengths)
      : shape_(shape), lengths_(std::move(lengths)) {
    std::int32_t blocks = 0;
    for (std::int32_t length : lengths_) blocks += (length + kKvBlockSize - 1) / kKvBlockSize;
    std::vector<std::int32_t> order(static_cast<std::size_t>(blocks));
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int32_t>(i);
    std::mt19937 engine(7);
    std::ranges::shuffle(order, engine);
    const std::size_t token = static_cast<std::size_t>(shape.num_kv_heads * shape.head_dim);
    k_pool_.assign(order.size() * kKvBlockSize * token * dtype_bytes(shape.dtype), std::byte{0xff});
    v_pool_ = k_pool_;
    std::size_t next = 0;
    ThreadPool pool(1);
    for (std::size_t s = 0; s < lengths_.size(); ++s) {
      const auto length = static_cast<std::size_t>(lengths_[s]);
      const std::size_t count = (length + kKvBlockSize - 1) / kKvBlockSize;
      tables_.emplace_back(order.begin() + static_cast<std::ptrdiff_t>(next),
                           order.begin() + static_cast<std::ptrdiff_t>(next + count));
      next += count;
      const auto seed = static_cast<unsigned>(3 * s);
      const std::vector<float> k = random_floats(length * token, seed);
      const std::vector<float> v = random_floats(length * token, seed + 1);
      q_.push_back(random_floats(length * row_size(), seed + 2, 3));
      round_inputs(shape.dtype, q_.back());
      std::vector<AttentionRow> rows;
      for (std::int32_t t = 0; t < lengths_[s]; ++t) rows.push_back({tables_[s], t});
      store_kv(layer(), rows, k.data(), v.data(), pool);
    }
  }

  std::size_t row_size() const {
    return static_cast<std::size_t>(shape_.num_heads * shape_.head_dim);
  }
  const std::vector<std::int32_t>& lengths() const { return lengths_; }

  std::vector<float> run(Variant variant, const std::vector<Row>& rows, ThreadPool& pool) {
    std::vector<AttentionRow> attention_rows;
    std::vector<float> q;
    for (const auto& [sequence, position] : rows) {
      attention_rows.push_back({tables_[sequence], position});
      const auto first = q_[sequence].begin() + position * static_cast<std::ptrdiff_t>(row_size());
      q.insert(q.end(), first, first + static_cast<std::ptrdiff_t>(row_size()));
    }
    Guarded out(q.size());
    attention(variant, layer(), attention_rows, shape_.num_heads, shape_.scale(), shape_.window,
              q.data(), out.data(), pool);
    EXPECT_TRUE(out.intact());
    return {out.span().begin(), out.span().end()};
  }

  const std::vector<float>& alone(Variant variant, Row row) {
    std::vector<float>& result = alone_[row];
    ThreadPool pool(1);
    if (result.empty()) result = run(variant, {row}, pool);
    return result;
  }

  /// How many of the rows differ from what they are alone.
  std::size_t count_wrong(Variant variant, const std::vector<Row>& rows, ThreadPool& pool) {
    const std::vector<float> all = run(variant, rows, pool);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::vector<float>& expected = alone(variant, rows[i]);
      for (float value : expected) EXPECT_TRUE(std::isfinite(value));
      if (std::memcmp(&all[i * row_size()], expected.data(), row_size() * sizeof(float)) != 0) {
        ++wrong;
      }
    }
    return wrong;
  }

 private:
  KvLayer layer() {
    return {shape_.dtype, k_pool_.data(), v_pool_.data(), shape_.num_kv_heads, shape_.head_dim};
  }

  AttentionShape shape_;
  std::vector<std::int32_t> lengths_;
  std::vector<std::vector<std::int32_t>> tables_;
  std::vector<std::vector<float>> q_;
  std::vector<std::byte> k_pool_;
  std::vector<std::byte> v_pool_;
  std::map<Row, std::vector<float>> alone_;
};

class AttentionBitsOf : public testing::TestWithParam<Variant> {};
INSTANTIATE_TEST_SUITE_P(Kernels,
                         AttentionBitsOf,
                         testing::ValuesIn(supported_variants()),
                         variant_test_name);

TEST_P(AttentionBitsOf, RandomBatchesAndChunks) {
  const unsigned seed = std::random_device{}();
  std::mt19937 engine(seed);
  const auto below = [&](std::int32_t end) {
    return std::uniform_int_distribution<std::int32_t>(0, end - 1)(engine);
  };
  for (const AttentionShape& shape : kShapes) {
    Batch batch(shape, {1, 40, 90, 150});
    for (std::int32_t call = 0; call < 8; ++call) {
      // Chunks of random length, decodes among them; a sequence may come twice.
      std::vector<Batch::Row> rows;
      for (std::int32_t chunk = 1 + below(5); chunk > 0; --chunk) {
        const auto sequence = static_cast<std::size_t>(below(4));
        const std::int32_t length = batch.lengths()[sequence];
        const std::int32_t first = below(length);
        const std::int32_t count = below(3) == 0 ? 1 : 1 + below(std::min(length - first, 50));
        for (std::int32_t i = 0; i < count; ++i) rows.emplace_back(sequence, first + i);
      }
      ThreadPool pool(static_cast<std::size_t>(1 + below(4)));
      ASSERT_EQ(batch.count_wrong(GetParam(), rows, pool), 0u)
          << "seed " << seed << " call " << call << " of " << rows.size() << " rows, head_dim "
          << shape.head_dim << " window " << shape.window;
    }
  }
}

TEST_P(AttentionBitsOf, LongContextsOnAnyNumberOfThreads) {
  for (const AttentionShape& shape :
       {AttentionShape{DType::kBF16, 4, 2, 32}, AttentionShape{DType::kF32, 2, 1, 40, 700}}) {
    Batch batch(shape, {1100, 30});
    for (std::size_t threads : {1, 2, 3, 4}) {
      ThreadPool pool(threads);
      EXPECT_EQ(batch.count_wrong(GetParam(), {{0, 1099}}, pool), 0u) << threads;
      std::vector<Batch::Row> rows = {{1, 7}, {0, 600}, {1, 8}};
      for (std::int32_t t = 1010; t < 1040; ++t) rows.emplace_back(0, t);
      rows.emplace_back(1, 29);
      for (std::int32_t t = 505; t < 520; ++t) rows.emplace_back(0, t);
      EXPECT_EQ(batch.count_wrong(GetParam(), rows, pool), 0u) << threads;
    }
  }
}

TEST_P(AttentionBitsOf, MoreRowsThanPartsCanBeKeptOf) {
  // Every row's few tokens lie on both sides of a multiple of 512.
  Batch batch({DType::kBF16, 2, 2, 64, 4}, {514});
  const std::vector<Batch::Row> rows(600, {0, 513});
  for (std::size_t threads : {1, 3}) {
    ThreadPool pool(threads);
    EXPECT_EQ(batch.count_wrong(GetParam(), rows, pool), 0u) << threads;
  }
}

TEST_P(AttentionBitsOf, ManyRowsOnAnyNumberOfThreads) {
  Batch batch({DType::kBF16, 8, 4, 64}, {200, 64});
  std::vector<Batch::Row> rows;
  for (std::int32_t t = 0; t < 200; ++t) rows.emplace_back(0, t);
  for (std::int32_t t = 0; t < 64; ++t) rows.emplace_back(1, t);
  for (std::size_t threads : {1, 2, 3, 4}) {
    ThreadPool pool(threads);
    EXPECT_EQ(batch.count_wrong(GetParam(), rows, pool), 0u) << threads;
  }
}

TEST_P(AttentionBitsOf, ALaterTokenOfTheChunkThatIsNotANumber) {
  for (const AttentionShape& shape : kShapes) {
    KvSequence clean(shape, 40);
    KvSequence broken(shape, 40);
    const std::ptrdiff_t token = std::ptrdiff_t{shape.num_kv_heads} * shape.head_dim;
    for (std::int32_t t : {13, 30, 31}) {
      std::fill_n(&broken.k[t * token], token, NAN);
      std::fill_n(&broken.v[t * token], token, NAN);
      broken.store(t);
    }
    ThreadPool pool(1);
    const std::vector<float> expected = clean.run(GetParam(), 0, 40, pool);
    const std::vector<float> actual = broken.run(GetParam(), 0, 40, pool);
    EXPECT_EQ(std::memcmp(expected.data(), actual.data(), 13 * clean.row_size() * sizeof(float)), 0)
        << "head_dim " << shape.head_dim;
    EXPECT_TRUE(std::isnan(actual[13 * clean.row_size()]));
    if (shape.window > 0 && shape.window < 9) {
      // Token 13 has left the window of row 29.
      EXPECT_EQ(std::memcmp(&expected[29 * clean.row_size()], &actual[29 * clean.row_size()],
                            clean.row_size() * sizeof(float)),
                0);
    }
  }
}

TEST_P(AttentionBitsOf, BlocksBeforeTheWindowMayBeGone) {
  const AttentionShape shape{DType::kBF16, 4, 2, 32, 20};
  KvSequence whole(shape, 90);
  KvSequence shortened(shape, 90);
  // Rows from 70 on see tokens from 51 on: blocks 0, 1 and 2 are another sequence's by now.
  for (std::size_t block = 0; block < 3; ++block) {
    shortened.table[block] = std::numeric_limits<std::int32_t>::max();
  }
  ThreadPool pool(2);
  const std::vector<float> expected = whole.run(GetParam(), 70, 20, pool);
  const std::vector<float> actual = shortened.run(GetParam(), 70, 20, pool);
  EXPECT_EQ(std::memcmp(expected.data(), actual.data(), expected.size() * sizeof(float)), 0);
}

}  // namespace
}  // namespace moiety::kernels
