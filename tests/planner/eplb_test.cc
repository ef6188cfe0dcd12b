#include "planner/eplb.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/planner/planner_models.h"

namespace moiety::planner {
namespace {

using testing::ElementsAre;

/// Mean over max of the workers' load, where a copy carries an equal part of its expert's load.
double balancedness(const std::vector<double>& weights,
                    const std::vector<std::int32_t>& expert_of_slot,
                    std::size_t num_workers) {
  std::vector<double> copies(weights.size(), 0);
  for (std::int32_t expert : expert_of_slot) ++copies[static_cast<std::size_t>(expert)];
  std::vector<double> load(num_workers, 0);
  const std::size_t per_worker = expert_of_slot.size() / num_workers;
  for (std::size_t slot = 0; slot < expert_of_slot.size(); ++slot) {
    const auto expert = static_cast<std::size_t>(expert_of_slot[slot]);
    load[slot / per_worker] += weights[expert] / copies[expert];
  }
  return std::accumulate(load.begin(), load.end(), 0.0) / static_cast<double>(num_workers) /
         *std::max_element(load.begin(), load.end());
}

double balancedness(const std::vector<std::vector<double>>& load, const Placement& placement) {
  double sum = 0;
  for (std::size_t layer = 0; layer < load.size(); ++layer) {
    std::map<WorkerId, double> of_worker;
    for (WorkerId worker : placement.workers()) of_worker[worker] = 0;
    double total = 0;
    for (std::size_t expert = 0; expert < load[layer].size(); ++expert) {
      const auto& owners = placement.owners[layer][expert];
      for (WorkerId owner : owners) {
        of_worker[owner] += load[layer][expert] / static_cast<double>(owners.size());
      }
      if (!owners.empty()) total += load[layer][expert];
    }
    double most = 0;
    for (const auto& [worker, mine] : of_worker) most = std::max(most, mine);
    sum += total / static_cast<double>(of_worker.size()) / most;
  }
  return sum / static_cast<double>(load.size());
}

// The example of EPLB's README: 12 experts, 16 slots, 4 groups, 2 nodes, 8 GPUs.
const std::vector<std::vector<double>> kExample = {
    {90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86},
    {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27}};

TEST(EplbBalance, HierarchicalReproducesThePublishedExample) {
  const EplbShape shape{.num_slots = 16, .num_groups = 4, .num_nodes = 2, .num_workers = 8};
  EXPECT_THAT(eplb_balance(kExample[0], shape),
              ElementsAre(5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1));
  EXPECT_THAT(eplb_balance(kExample[1], shape),
              ElementsAre(7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1));
  EXPECT_NEAR(balancedness(kExample[0], eplb_balance(kExample[0], shape), 8), 0.828, 0.0005);
  EXPECT_NEAR(balancedness(kExample[1], eplb_balance(kExample[1], shape), 8), 0.805, 0.0005);
}

TEST(EplbBalance, GlobalBalancesTheExampleBetter) {
  const EplbShape shape{.num_slots = 16, .num_groups = 1, .num_nodes = 1, .num_workers = 8};
  EXPECT_NEAR(balancedness(kExample[0], eplb_balance(kExample[0], shape), 8), 0.932, 0.0005);
  EXPECT_NEAR(balancedness(kExample[1], eplb_balance(kExample[1], shape), 8), 0.840, 0.0005);
  // Nodes that do not divide the groups: global.
  const EplbShape odd{.num_slots = 16, .num_groups = 3, .num_nodes = 2, .num_workers = 8};
  EXPECT_EQ(eplb_balance(kExample[0], odd), eplb_balance(kExample[0], shape));
}

TEST(EplbBalance, RandomWeightsKeepEveryPromise) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    const std::size_t nodes = 1 + random() % 4;
    const std::size_t workers = nodes * (1 + random() % 4);
    const std::size_t groups = nodes * (1 + random() % 2);
    std::vector<double> weights(groups * (1 + random() % 8));
    for (double& weight : weights) weight = static_cast<double>(1 + random() % 1000);
    const std::size_t slots =
        (weights.size() + workers - 1) / workers * workers + workers * (random() % 3);
    const EplbShape shape{static_cast<std::int32_t>(slots), static_cast<std::int32_t>(groups),
                          static_cast<std::int32_t>(nodes), static_cast<std::int32_t>(workers)};
    const auto expert_of_slot = eplb_balance(weights, shape);
    ASSERT_EQ(expert_of_slot.size(), slots) << seed;
    std::set<std::int32_t> seen(expert_of_slot.begin(), expert_of_slot.end());
    EXPECT_EQ(seen.size(), weights.size()) << seed << ": an expert has no slot";
    // A group stays on one node.
    std::map<std::size_t, std::set<std::size_t>> nodes_of;
    for (std::size_t slot = 0; slot < slots; ++slot) {
      const auto expert = static_cast<std::size_t>(expert_of_slot[slot]);
      nodes_of[expert / (weights.size() / groups)].insert(slot / (slots / nodes));
    }
    for (const auto& [group, where] : nodes_of) EXPECT_EQ(where.size(), 1u) << seed;
  }
}

TEST(PlaceByEplb, BalancesBetterThanById) {
  for (unsigned seed = 0; seed < 50; ++seed) {
    std::mt19937 random(seed);
    const ModelShape model = uniform_model(4, 61);
    PlaceOptions options = options_of(7, 14, PlacementPolicy::kEplb);
    options.replicas = 1 + static_cast<std::int32_t>(seed % 2);
    for (const auto& layer : model.layers) {
      auto& load = options.load.emplace_back();
      for (std::int32_t expert = 0; expert < layer.num_routed; ++expert) {
        // A few experts have most of the load.
        load.push_back(1000.0 / static_cast<double>(1 + random() % 40));
      }
    }
    const std::vector<Deployment> full = {{"", keep_all(model), false}};
    const auto balanced = place_experts(model, full, options, {});
    ASSERT_TRUE(balanced) << balanced.error().message;
    PlaceOptions by_id = options;
    by_id.policy = PlacementPolicy::kById;
    by_id.replicas = 1;
    const auto plain = place_experts(model, full, by_id, {});
    ASSERT_TRUE(plain);
    EXPECT_GT(balancedness(options.load, *balanced), balancedness(options.load, *plain)) << seed;
    // Without copies the hottest expert alone may be more than a worker's share.
    if (options.replicas > 1) {
      EXPECT_GT(balancedness(options.load, *balanced), 0.9) << seed;
    }
    EXPECT_EQ(placement_fault(model, full, options, *balanced), "") << seed;
  }
}

TEST(PlaceByEplb, UnevenCountsAndUnneededExpertsAreFine) {
  ModelShape model = uniform_model(2, 10);
  model.layers.push_back({});
  model.layers.push_back({7, 0, 1, 300});
  std::mt19937 random(1);
  const std::vector<Deployment> some = {{"a", random_kept(model, 5, random), false}};
  for (auto policy : {PlacementPolicy::kEplb, PlacementPolicy::kEplbHierarchical}) {
    PlaceOptions options = options_of(3, 4, policy);
    options.replicas = 2;
    options.eplb_nodes = 3;
    options.eplb_groups = 3;
    const auto placement = place_experts(model, some, options, {});
    ASSERT_TRUE(placement) << placement.error().message;
    EXPECT_EQ(placement_fault(model, some, options, *placement), "");
    EXPECT_EQ(missing_replicas(some, *placement, 2), 0u);
  }
}

}  // namespace
}  // namespace moiety::planner
