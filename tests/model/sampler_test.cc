#include "model/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace moiety {
namespace {

const std::vector<float> kLogits = {0.0f, 2.0f, 1.0f, 2.0f, -3.0f};

TEST(Sampler, GreedyTakesTheFirstOfTheLargest) {
  EXPECT_EQ(sample(kLogits, {0.0f, 1.0f, 5}, 0), 1);
}

TEST(Sampler, TheSameSeedAndIndexGiveTheSameToken) {
  for (std::uint64_t index = 0; index < 100; ++index) {
    EXPECT_EQ(sample(kLogits, {1.0f, 1.0f, 42}, index), sample(kLogits, {1.0f, 1.0f, 42}, index));
  }
}

TEST(Sampler, FrequenciesFollowTheSoftmax) {
  const int draws = 40000;
  for (const float temperature : {0.5f, 1.0f, 2.0f}) {
    std::vector<int> counts(kLogits.size());
    for (int i = 0; i < draws; ++i) {
      ++counts[static_cast<std::size_t>(
          sample(kLogits, {temperature, 1.0f, 7}, static_cast<std::uint64_t>(i)))];
    }
    double sum = 0;
    for (float l : kLogits) sum += std::exp(l / temperature);
    for (std::size_t i = 0; i < counts.size(); ++i) {
      const double p = std::exp(kLogits[i] / temperature) / sum;
      EXPECT_NEAR(counts[i], draws * p, 5 * std::sqrt(draws * p * (1 - p))) << "token " << i;
    }
  }
}

TEST(Sampler, DifferentSeedsDrawDifferentSequences) {
  int same = 0;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    same += sample(kLogits, {1.0f, 1.0f, 1}, i) == sample(kLogits, {1.0f, 1.0f, 2}, i) ? 1 : 0;
  }
  EXPECT_LT(same, 500);
}

TEST(Sampler, TheNucleusIsTheSmallestSetThatReachesTopP) {
  // Probabilities: 0.4 (1), 0.4 (3), 0.15 (2), 0.05 (0), 0.003 (4), roughly.
  for (std::uint64_t i = 0; i < 2000; ++i) {
    const auto token = sample(kLogits, {1.0f, 0.5f, 3}, i);
    EXPECT_TRUE(token == 1 || token == 3);
    EXPECT_EQ(sample(kLogits, {1.0f, 0.0f, 3}, i), 1) << "never less than one token";
  }
}

TEST(Sampler, LogProbabilitiesSumToOne) {
  double sum = 0;
  for (std::int32_t i = 0; i < 5; ++i) sum += std::exp(log_probability(kLogits, i));
  EXPECT_NEAR(sum, 1, 1e-12);
}

}  // namespace
}  // namespace moiety
