#include "experts/run.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/golden/golden_support.h"

namespace moiety {
namespace {

using testing::must;
using testing::source_path;

class RunTest : public ::testing::TestWithParam<kernels::Variant> {
 protected:
  RunTest()
      : checkpoint_(must(Checkpoint::open(source_path("tests/golden/fixtures/emo")))),
        store_(checkpoint_, DType::kBF16) {}

  PairList random_pairs(std::size_t rows, std::size_t most, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    PairList pairs;
    pairs.row_offsets.push_back(0);
    for (std::size_t row = 0; row < rows; ++row) {
      for (std::size_t pair = random() % (most + 1); pair > 0; --pair) {
        pairs.experts.push_back(static_cast<std::int32_t>(random() % 11));
        pairs.weights.push_back(static_cast<float>(random() % 100) / 100);
      }
      pairs.row_offsets.push_back(static_cast<std::uint32_t>(pairs.experts.size()));
    }
    return pairs;
  }

  std::vector<float> random_rows(std::size_t rows) {
    std::mt19937_64 random(9);
    std::vector<float> values(rows * kHidden);
    for (float& v : values)
      v = bf16_to_float(
          float_to_bf16(static_cast<float>(static_cast<double>(random()) * 0x1p-63 - 1)));
    return values;
  }

  static constexpr std::size_t kHidden = 64;
  Checkpoint checkpoint_;
  ExpertStore store_;
};

TEST_P(RunTest, APairsBitsDoNotDependOnItsCompany) {
  ASSERT_TRUE(store_.load(all_routed_experts(checkpoint_.architecture())));
  const std::vector<float> rows = random_rows(70);
  const PairList pairs = random_pairs(70, 4, 3);
  std::vector<float> together(pairs.num_pairs() * kHidden, NAN);
  for (const std::size_t threads : {1u, 3u}) {
    ThreadPool pool(threads);
    ExpertRunner runner(GetParam(), pool);
    ASSERT_TRUE(runner.run_pairs(store_, 1, kHidden, rows, pairs, together));
    for (std::size_t row = 0; row < pairs.num_rows(); ++row) {
      for (std::size_t pair = pairs.row_offsets[row]; pair < pairs.row_offsets[row + 1]; ++pair) {
        const PairList one{{0, 1}, {pairs.experts[pair]}, {pairs.weights[pair]}};
        std::vector<float> alone(kHidden, NAN);
        ASSERT_TRUE(runner.run_pairs(store_, 1, kHidden,
                                     std::span(rows).subspan(row * kHidden, kHidden), one, alone));
        EXPECT_TRUE(std::equal(alone.begin(), alone.end(), &together[pair * kHidden]));
      }
    }
  }
}

TEST_P(RunTest, EmptyBatchesAndRowsWithoutPairs) {
  ASSERT_TRUE(store_.load(all_routed_experts(checkpoint_.architecture())));
  ThreadPool pool(2);
  ExpertRunner runner(GetParam(), pool);
  EXPECT_TRUE(runner.run_pairs(store_, 0, kHidden, {}, {{0}, {}, {}}, {}));
  const std::vector<float> rows = random_rows(2);
  std::vector<float> pair_rows;
  const PairList none{{0, 0, 0}, {}, {}};
  EXPECT_TRUE(runner.run_pairs(store_, 0, kHidden, rows, none, pair_rows));
  std::vector<float> y(2 * kHidden, NAN);
  EXPECT_TRUE(runner.run_rows(store_, 0, kHidden, rows, none, y));
  EXPECT_EQ(y, std::vector<float>(2 * kHidden, 0.0f));
}

TEST_P(RunTest, ARowIsTheSumOfItsPairsInSlotOrder) {
  ASSERT_TRUE(store_.load(all_routed_experts(checkpoint_.architecture())));
  const std::vector<float> rows = random_rows(70);
  const PairList pairs = random_pairs(70, 4, 5);
  std::vector<float> pair_rows(pairs.num_pairs() * kHidden, NAN);
  std::vector<float> y(pairs.num_rows() * kHidden, NAN);
  for (const std::size_t threads : {1u, 3u}) {
    ThreadPool pool(threads);
    ExpertRunner runner(GetParam(), pool);
    ASSERT_TRUE(runner.run_pairs(store_, 1, kHidden, rows, pairs, pair_rows));
    ASSERT_TRUE(runner.run_rows(store_, 1, kHidden, rows, pairs, y));
    for (std::size_t row = 0; row < pairs.num_rows(); ++row) {
      std::vector<float> sum(kHidden, 0.0f);
      for (std::size_t pair = pairs.row_offsets[row]; pair < pairs.row_offsets[row + 1]; ++pair) {
        for (std::size_t i = 0; i < kHidden; ++i) sum[i] += pair_rows[pair * kHidden + i];
      }
      ASSERT_TRUE(std::equal(sum.begin(), sum.end(), &y[row * kHidden])) << "row " << row;
    }
  }
}

TEST_P(RunTest, AnExpertThatIsNotLoadedIsNamed) {
  const std::vector<ExpertId> some = {{0, 1}, {0, 2}};
  ASSERT_TRUE(store_.load(some));
  ThreadPool pool(1);
  ExpertRunner runner(GetParam(), pool);
  const std::vector<float> rows = random_rows(1);
  std::vector<float> out(kHidden);
  const auto outcome = runner.run_pairs(store_, 0, kHidden, rows, {{0, 1}, {3}, {1.0f}}, out);
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, ErrorCode::kFailedPrecondition);
  EXPECT_NE(outcome.error().message.find("expert 3 of layer 0"), std::string::npos);
  EXPECT_FALSE(runner.run_pairs(store_, 0, kHidden, rows, {{0, 1}, {-1}, {1.0f}}, out));
  EXPECT_FALSE(runner.run_pairs(store_, 0, kHidden + 1, rows, {{0, 1}, {1}, {1.0f}}, out));
}

INSTANTIATE_TEST_SUITE_P(AllVariants,
                         RunTest,
                         ::testing::ValuesIn(kernels::supported_variants()),
                         [](const auto& info) {
                           return std::string(kernels::variant_name(info.param));
                         });

TEST(ExpertStoreTest, CountsBytesLoadsOnceAndDrops) {
  const Checkpoint checkpoint = must(Checkpoint::open(source_path("tests/golden/fixtures/emo")));
  const auto one = static_cast<std::uint64_t>(checkpoint.architecture().expert_parameters(0));
  ExpertStore store(checkpoint, DType::kBF16);
  const std::vector<ExpertId> experts = {{0, 1}, {2, 5}};
  ASSERT_TRUE(store.load(experts));
  EXPECT_EQ(store.bytes_read(), 2 * 4 * one) << "the fixture is F32";
  EXPECT_EQ(checkpoint.tensors().bytes_read(), store.bytes_read());
  EXPECT_EQ(store.bytes_resident(), 2 * 2 * one);
  ASSERT_TRUE(store.load(experts));
  EXPECT_EQ(store.bytes_read(), 2 * 4 * one) << "what is resident is not read again";
  const auto held = store.find({2, 5});
  store.keep_only({{0, 1}});
  EXPECT_EQ(store.num_experts(), 1u);
  EXPECT_EQ(store.bytes_resident(), 2 * one);
  EXPECT_EQ(store.find({2, 5}), nullptr);
  EXPECT_EQ(held->gate.k(), 64) << "who has found it keeps it alive";
  const std::vector<ExpertId> bad = {{0, 11}};  // the shared expert: not a routed one
  EXPECT_EQ(store.load(bad).error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace moiety
