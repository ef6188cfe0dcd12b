#include "planner/router_experts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "planner/moves.h"
#include "tests/planner/planner_models.h"

namespace moiety::planner {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

/// Three layers: 8 experts of 1000 bytes, a dense one, 4 of 1000. All keep everything, "a" and "b"
/// some.
class RouterExperts : public testing::Test {
 protected:
  RouterExperts() {
    model = uniform_model(3, 8);
    model.layers[1] = {};
    model.layers[2].num_routed = 4;
    deployments = {{"", keep_all(model)}, {"a", {}}, {"b", {}}};
    deployments[1].kept.layers = {{5, 6, 7}, {}, {2, 3}};
    deployments[2].kept.layers = {{6, 7}, {}, {3}};
  }
  ModelShape model;
  std::vector<Deployment> deployments;
};

TEST_F(RouterExperts, ThoseThatTheMostDeploymentsKeepAndEquallyOfAllLayers) {
  EXPECT_THAT(choose_router_experts(model, deployments, 999), IsEmpty());
  // A quarter of each layer is 2 and 1 experts.
  EXPECT_THAT(choose_router_experts(model, deployments, 3000),
              ElementsAre(ExpertId{0, 6}, ExpertId{0, 7}, ExpertId{2, 3}));
  EXPECT_THAT(choose_router_experts(model, deployments, 6999),
              ElementsAre(ExpertId{0, 0}, ExpertId{0, 5}, ExpertId{0, 6}, ExpertId{0, 7},
                          ExpertId{2, 2}, ExpertId{2, 3}));
  EXPECT_EQ(choose_router_experts(model, deployments, 1u << 30).size(), 12u);
}

TEST_F(RouterExperts, NoneThatNobodyKeeps) {
  deployments.erase(deployments.begin());
  EXPECT_THAT(
      choose_router_experts(model, deployments, 1u << 30),
      ElementsAre(ExpertId{0, 5}, ExpertId{0, 6}, ExpertId{0, 7}, ExpertId{2, 2}, ExpertId{2, 3}));
  EXPECT_THAT(choose_router_experts(model, {}, 1u << 30), IsEmpty());
}

TEST_F(RouterExperts, WorkersGetTheRestByEveryPolicy) {
  for (const PlacementPolicy policy :
       {PlacementPolicy::kMembership, PlacementPolicy::kById, PlacementPolicy::kRoundRobin,
        PlacementPolicy::kEplb, PlacementPolicy::kEplbHierarchical}) {
    SCOPED_TRACE(policy_name(policy));
    for (const std::int32_t replicas : {1, 2}) {
      PlaceOptions options = options_of(4, 8, policy);
      options.replicas = replicas;
      const auto before = place_experts(model, deployments, options, {});
      ASSERT_TRUE(before);
      options.router_experts = choose_router_experts(model, deployments, 6000);
      const auto placed = place_experts(model, deployments, options, *before);
      ASSERT_TRUE(placed) << placed.error().message;
      EXPECT_EQ(placed->router_experts, options.router_experts);
      for (std::int32_t layer : {0, 2}) {
        const auto& owners = placed->owners[static_cast<std::size_t>(layer)];
        for (std::int32_t expert = 0; expert < static_cast<std::int32_t>(owners.size()); ++expert) {
          const bool here =
              std::binary_search(options.router_experts.begin(), options.router_experts.end(),
                                 ExpertId{layer, expert});
          EXPECT_EQ(owners[static_cast<std::size_t>(expert)].empty(), here);
        }
      }
      EXPECT_EQ(missing_replicas(deployments, *placed, replicas), 0u);
    }
  }
}

TEST_F(RouterExperts, AreHeldUntilTheLastStepOfAMove) {
  // Worker 0 has room for one expert; two swap places with worker 1, so that takes steps.
  ModelShape two = uniform_model(1, 4);
  Placement from;
  from.owners = {{{WorkerId{0}}, {WorkerId{0}}, {WorkerId{1}}, {}}};
  from.router_experts = {{0, 3}};
  Placement to;
  to.owners = {{{WorkerId{1}}, {}, {WorkerId{0}}, {WorkerId{0}}}};
  to.router_experts = {{0, 1}};
  const auto steps = split_move(two, from, to, {{WorkerId{0}, 2000}, {WorkerId{1}, 2000}});
  ASSERT_TRUE(steps) << steps.error().message;
  ASSERT_GT(steps->size(), 1u);
  EXPECT_EQ(steps->back(), to);
  for (std::size_t step = 0; step + 1 < steps->size(); ++step)
    EXPECT_THAT((*steps)[step].router_experts, ElementsAre(ExpertId{0, 1}, ExpertId{0, 3}));
}

}  // namespace
}  // namespace moiety::planner
