#include "kernels/gate.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "tests/kernels/tolerance.h"

namespace moiety::kernels {
namespace {

struct Selection {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
  float masked_mass = 0;
};

Selection select(Variant variant,
                 const std::vector<float>& logits,
                 const std::vector<std::uint8_t>& kept,
                 std::size_t top_k,
                 bool norm_topk,
                 float scale = 1) {
  Selection selection{std::vector<std::int32_t>(top_k, -7), std::vector<float>(top_k, NAN)};
  selection.masked_mass =
      select_experts(variant, logits, kept, {norm_topk, scale}, selection.ids, selection.weights);
  return selection;
}

/// Every expert with a chance of `percent`, and the first `at_least`.
std::vector<std::uint8_t> random_mask(std::size_t size,
                                      unsigned seed,
                                      unsigned percent,
                                      std::size_t at_least) {
  std::mt19937 engine(seed);
  std::vector<std::uint8_t> kept(size);
  for (std::size_t i = 0; i < size; ++i) kept[i] = i < at_least || engine() % 100 < percent ? 1 : 0;
  std::shuffle(kept.begin(), kept.end(), engine);
  return kept;
}

class GateOf : public testing::TestWithParam<Variant> {};
INSTANTIATE_TEST_SUITE_P(Kernels,
                         GateOf,
                         testing::ValuesIn(supported_variants()),
                         variant_test_name);

TEST_P(GateOf, MatchesSortingAndSoftmaxInDouble) {
  for (std::size_t num_routed : {1, 7, 8, 9, 64, 65, 127, 256}) {
    const std::size_t top_k = std::min<std::size_t>(num_routed, 7);
    for (unsigned seed = 0; seed < 20; ++seed) {
      const std::vector<float> logits = random_floats(num_routed, seed, 8);
      for (bool masked : {false, true}) {
        const auto kept =
            masked ? random_mask(num_routed, seed, 30, top_k) : std::vector<std::uint8_t>{};
        std::vector<std::int32_t> order;
        double all = 0;
        double present = 0;
        for (std::size_t i = 0; i < num_routed; ++i) {
          const double e = std::exp(static_cast<double>(logits[i]));
          all += e;
          if (masked && kept[i] == 0) continue;
          present += e;
          order.push_back(static_cast<std::int32_t>(i));
        }
        std::stable_sort(order.begin(), order.end(),
                         [&](auto a, auto b) { return logits[a] > logits[b]; });
        order.resize(top_k);
        double selected = 0;
        for (std::int32_t id : order) selected += std::exp(static_cast<double>(logits[id]));
        for (bool norm_topk : {false, true}) {
          const Selection got = select(GetParam(), logits, kept, top_k, norm_topk);
          EXPECT_EQ(got.ids, order);
          for (std::size_t slot = 0; slot < top_k; ++slot) {
            const double weight = std::exp(static_cast<double>(logits[order[slot]])) /
                                  (norm_topk ? selected : present);
            // The difference from the largest logit is rounded (at most 16 here), then the
            // exponential.
            EXPECT_NEAR(got.weights[slot], weight, weight * (2 * 16 + 8) * kUnitF32);
          }
          EXPECT_NEAR(got.masked_mass, 1 - present / all, 40 * kUnitF32);
          EXPECT_GE(got.masked_mass, 0);
          EXPECT_LE(got.masked_mass, 1);
        }
      }
    }
  }
}

TEST_P(GateOf, AMaskEqualsAbsenceBitForBit) {
  for (unsigned seed = 0; seed < 100; ++seed) {
    const std::size_t num_routed = 20 + seed;
    const std::vector<float> logits = random_floats(num_routed, seed, 12);
    const auto kept = random_mask(num_routed, seed, 25, 7);
    std::vector<float> present_logits;
    std::vector<std::int32_t> original;
    for (std::size_t i = 0; i < num_routed; ++i) {
      if (kept[i] == 0) continue;
      present_logits.push_back(logits[i]);
      original.push_back(static_cast<std::int32_t>(i));
    }
    for (bool norm_topk : {false, true}) {
      const Selection masked = select(GetParam(), logits, kept, 7, norm_topk);
      const Selection pruned = select(GetParam(), present_logits, {}, 7, norm_topk);
      for (std::size_t slot = 0; slot < 7; ++slot) {
        EXPECT_EQ(masked.ids[slot], original[static_cast<std::size_t>(pruned.ids[slot])]);
      }
      EXPECT_EQ(std::memcmp(masked.weights.data(), pruned.weights.data(), 7 * sizeof(float)), 0);
      EXPECT_EQ(pruned.masked_mass, 0);
    }
  }
}

TEST_P(GateOf, TiesGoToTheLowerId) {
  EXPECT_EQ(select(GetParam(), std::vector<float>(9, 0.5f), {}, 4, false).ids,
            (std::vector<std::int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(select(GetParam(), {1, 3, 2, 3, 2, 3}, {}, 5, false).ids,
            (std::vector<std::int32_t>{1, 3, 5, 2, 4}));
  EXPECT_EQ(select(GetParam(), {1, 3, 2, 3, 2, 3}, {1, 0, 1, 1, 1, 1}, 3, false).ids,
            (std::vector<std::int32_t>{3, 5, 2}));
}

TEST_P(GateOf, TopKOfAllSelectsEveryExpertAndSumsToOne) {
  const std::vector<float> logits = random_floats(33, 5, 4);
  const Selection got = select(GetParam(), logits, {}, 33, false);
  std::vector<std::int32_t> ids = got.ids;
  std::sort(ids.begin(), ids.end());
  std::vector<std::int32_t> all(33);
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(ids, all);
  EXPECT_TRUE(std::is_sorted(got.weights.rbegin(), got.weights.rend()));
  EXPECT_NEAR(std::accumulate(got.weights.begin(), got.weights.end(), 0.0), 1, 40 * kUnitF32);
}

TEST_P(GateOf, MaskedMassKeepsItsRangeAtTheEnds) {
  // All of the mass is absent, by more than an exponential can hold, and the other way round.
  EXPECT_EQ(select(GetParam(), {500, -500}, {0, 1}, 1, false).masked_mass, 1.0f);
  EXPECT_EQ(select(GetParam(), {500, -500}, {1, 0}, 1, false).masked_mass, 0.0f);
  EXPECT_EQ(select(GetParam(), {3, 3}, {1, 0}, 1, false).masked_mass, 0.5f);
  EXPECT_EQ(select(GetParam(), {3, 1}, {1, 1}, 1, false).masked_mass, 0.0f);
  // A share far below float's resolution at 1 is not lost.
  EXPECT_NEAR(select(GetParam(), {0, -40}, {1, 0}, 1, false).masked_mass, std::exp(-40.0), 1e-23);
  EXPECT_EQ(select(GetParam(), {500, -500}, {0, 1}, 1, false).weights[0], 1.0f);
}

TEST_P(GateOf, ANanLogitGivesValidIds) {
  const Selection got = select(GetParam(), {NAN, 1, NAN, 2}, {}, 4, false);
  EXPECT_EQ(got.ids, (std::vector<std::int32_t>{3, 1, 0, 2}));
  for (float weight : got.weights) EXPECT_TRUE(std::isnan(weight));
}

TEST_P(GateOf, ReplayGivesTheWeightsOfTheSelection) {
  const std::vector<float> logits = random_floats(50, 2, 6);
  const auto kept = random_mask(50, 1, 50, 8);
  for (bool norm_topk : {false, true}) {
    const Selection got = select(GetParam(), logits, kept, 8, norm_topk, 2.5f);
    std::vector<float> replayed(8);
    weigh_experts(GetParam(), logits, kept, {norm_topk, 2.5f}, got.ids, replayed);
    EXPECT_EQ(replayed, got.weights);
  }
}

TEST_P(GateOf, NormalisedWeightsAreTheSoftmaxOverTheTopK) {
  const std::vector<float> logits = random_floats(40, 3, 5);
  const Selection got = select(GetParam(), logits, {}, 6, true);
  double sum = 0;
  for (std::int32_t id : got.ids) sum += std::exp(static_cast<double>(logits[id]));
  for (std::size_t i = 0; i < 6; ++i) {
    const double expected = std::exp(static_cast<double>(logits[got.ids[i]])) / sum;
    EXPECT_NEAR(got.weights[i], expected, expected * 50 * kUnitF32);
  }
}

TEST_P(GateOf, ScaleMultipliesTheWeightsAndNothingElse) {
  const std::vector<float> logits = random_floats(40, 5, 5);
  const auto kept = random_mask(40, 2, 50, 6);
  for (bool norm_topk : {false, true}) {
    const Selection plain = select(GetParam(), logits, kept, 6, norm_topk);
    const Selection scaled = select(GetParam(), logits, kept, 6, norm_topk, 2.5f);
    EXPECT_EQ(scaled.ids, plain.ids);
    EXPECT_EQ(scaled.masked_mass, plain.masked_mass);
    for (std::size_t i = 0; i < 6; ++i) {
      EXPECT_NEAR(scaled.weights[i], 2.5 * plain.weights[i], 4 * kUnitF32 * scaled.weights[i]);
    }
  }
}

TEST(GateDeathTest, FewerPresentThanSelectedIsABug) {
  std::vector<std::int32_t> ids(2);
  std::vector<float> weights(2);
  const std::vector<float> logits = {1, 2, 3};
  const std::vector<std::uint8_t> kept = {0, 1, 0};
  EXPECT_DEATH(select_experts(Variant::kPlain, logits, kept, {}, ids, weights), "fewer experts");
}

TEST(Softmax, MatchesDouble) {
  const std::vector<float> logits = random_floats(129, 4, 10);
  std::vector<float> p(logits.size());
  softmax(logits, p);
  double sum = 0;
  for (float logit : logits) sum += std::exp(static_cast<double>(logit));
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double expected = std::exp(static_cast<double>(logits[i])) / sum;
    EXPECT_NEAR(p[i], expected, expected * 50 * kUnitF32);
  }
}

}  // namespace
}  // namespace moiety::kernels
