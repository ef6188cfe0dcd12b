#include "planner/place.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "tests/planner/planner_models.h"

namespace moiety::planner {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Deployment deployment(std::string name, KeptExperts kept) {
  return {std::move(name), std::move(kept), false};
}

Placement placed(const ModelShape& model,
                 const std::vector<Deployment>& deployments,
                 const PlaceOptions& options,
                 const Placement& current = {}) {
  auto result = place_experts(model, deployments, options, current);
  EXPECT_TRUE(result) << result.error().message;
  EXPECT_EQ(placement_fault(model, deployments, options, *result), "");
  return *result;
}

TEST(GroupExperts, ByMembershipInOrderOfFirstExpert) {
  ModelShape model = uniform_model(2, 5);
  model.layers[1] = {};
  KeptExperts a;
  a.layers = {{1, 2, 4}, {}};
  KeptExperts b;
  b.layers = {{2}, {}};
  const auto groups = group_experts(model, {deployment("a", a), deployment("b", b)});
  ASSERT_EQ(groups.size(), 2u);
  ASSERT_EQ(groups[0].size(), 3u);
  EXPECT_THAT(groups[0][0].members, ElementsAre());
  EXPECT_THAT(groups[0][0].experts, ElementsAre(0, 3));
  EXPECT_THAT(groups[0][1].members, ElementsAre(0));
  EXPECT_THAT(groups[0][1].experts, ElementsAre(1, 4));
  EXPECT_THAT(groups[0][2].members, ElementsAre(0, 1));
  EXPECT_THAT(groups[0][2].experts, ElementsAre(2));
  EXPECT_TRUE(groups[1].empty());
}

TEST(PlacementPolicy, NamesRoundTrip) {
  for (const char* name : {"membership", "id", "round_robin", "eplb", "eplb_hierarchical"}) {
    const auto policy = parse_policy(name);
    ASSERT_TRUE(policy) << name;
    EXPECT_EQ(policy_name(*policy), name);
  }
  EXPECT_THAT(parse_policy("best").error().message,
              HasSubstr("\"best\" is unknown; use membership, id, round_robin, eplb or "));
}

TEST(PlaceExperts, AQuarterOfTheExpertsNeedsAQuarterOfTheWorkers) {
  // Keep 16 of 64: 15 routed experts, another 15 in each layer.
  const ModelShape model = uniform_model(16, 63);
  for (unsigned seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    const std::vector<Deployment> domain = {deployment("python", random_kept(model, 15, random))};
    const auto placement = placed(model, domain, options_of(8, 8));
    EXPECT_THAT(placement.workers(), ElementsAre(WorkerId{0}, WorkerId{1})) << seed;
    EXPECT_EQ(workers_of(placement, domain[0].kept).size(), 2u);

    // Laid out by id nobody can be left out.
    for (auto policy : {PlacementPolicy::kById, PlacementPolicy::kRoundRobin}) {
      EXPECT_EQ(placed(model, domain, options_of(8, 8, policy)).workers().size(), 8u)
          << seed << " " << policy_name(policy);
    }
  }
}

TEST(PlaceExperts, BalancesWithinTheWorkersThatItUses) {
  const ModelShape model = uniform_model(1, 36);
  const auto placement = placed(model, {deployment("", keep_all(model))}, options_of(5, 16));
  for (std::uint32_t worker = 0; worker < 3; ++worker) {
    EXPECT_EQ(placement.experts_of({worker}).size(), 12u) << worker;
  }
  EXPECT_EQ(placement.workers().size(), 3u);
}

TEST(PlaceExperts, ByIdAndRoundRobinFollowTheirRule) {
  const ModelShape model = uniform_model(1, 5);
  const std::vector<Deployment> full = {deployment("", keep_all(model))};
  const auto by_id = placed(model, full, options_of(2, 3, PlacementPolicy::kById));
  EXPECT_THAT(by_id.owners[0], ElementsAre(ElementsAre(WorkerId{0}), ElementsAre(WorkerId{0}),
                                           ElementsAre(WorkerId{0}), ElementsAre(WorkerId{1}),
                                           ElementsAre(WorkerId{1})));
  const auto turns = placed(model, full, options_of(2, 3, PlacementPolicy::kRoundRobin));
  EXPECT_THAT(turns.owners[0], ElementsAre(ElementsAre(WorkerId{0}), ElementsAre(WorkerId{1}),
                                           ElementsAre(WorkerId{0}), ElementsAre(WorkerId{1}),
                                           ElementsAre(WorkerId{0})));
}

TEST(PlaceExperts, UndeployingTheFullModelFreesWorkersWithoutAMove) {
  const ModelShape model = uniform_model(6, 63);
  for (unsigned seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    const std::vector<Deployment> all = {deployment("", keep_all(model)),
                                         deployment("python", random_kept(model, 15, random)),
                                         deployment("german", random_kept(model, 15, random))};
    const PlaceOptions options = options_of(4, 16);
    const auto before = placed(model, all, options);
    EXPECT_EQ(before.workers().size(), 4u);
    const std::vector<Deployment> rest = {all[1], all[2]};
    const auto after = placed(model, rest, options, before);
    EXPECT_EQ(after.workers().size(), 2u) << seed;
    const auto cost = move_cost(model, before, after);
    EXPECT_EQ(cost.experts_loaded, 0) << seed;
    EXPECT_EQ(cost.bytes_loaded, 0u);
    EXPECT_GT(cost.experts_dropped, 0);

    // One domain alone lives on one worker, if anything of it has to move at all.
    const auto last = placed(model, {all[1]}, options, after);
    EXPECT_EQ(last.workers().size(), 1u);
  }
}

TEST(PlaceExperts, DisjointDomainsGetWorkersOfTheirOwn) {
  const ModelShape model = uniform_model(3, 32);
  KeptExperts low;
  KeptExperts high;
  low.layers = {{0, 1, 2}, {4, 5, 6}, {29, 30, 31}};
  high.layers = {{3, 4, 5}, {0, 1, 2}, {10, 11, 12}};
  const std::vector<Deployment> both = {deployment("low", low), deployment("high", high)};
  const auto placement = placed(model, both, options_of(4, 4));
  EXPECT_THAT(workers_of(placement, low), ElementsAre(WorkerId{0}));
  EXPECT_THAT(workers_of(placement, high), ElementsAre(WorkerId{1}));
}

TEST(PlaceExperts, RegroupsForANewDomainAndMovesNoMoreThanItMust) {
  const ModelShape model = uniform_model(6, 63);
  for (unsigned seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    const PlaceOptions options = options_of(4, 16);
    std::vector<Deployment> deployments = {deployment("", keep_all(model))};
    const auto before = placed(model, deployments, options);
    deployments.push_back(deployment("python", random_kept(model, 15, random)));
    const auto after = placed(model, deployments, options, before);
    EXPECT_EQ(workers_of(after, deployments[1].kept).size(), 1u) << seed;

    // Gathering python on the best worker takes its absent experts in and as many others out.
    std::int64_t least = 1000000;
    for (std::uint32_t worker = 0; worker < 4; ++worker) {
      std::int64_t absent = 0;
      for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
        for (std::int32_t expert : deployments[1].kept.layers[layer]) {
          const auto& owners = before.owners[layer][static_cast<std::size_t>(expert)];
          absent += owners.front() == WorkerId{worker} ? 0 : 1;
        }
      }
      least = std::min(least, absent);
    }
    EXPECT_LE(move_cost(model, before, after).experts_loaded, 2 * least) << seed;
  }
}

TEST(PlaceExperts, RandomDeploymentsKeepEveryPromise) {
  for (unsigned seed = 0; seed < 300; ++seed) {
    std::mt19937 random(seed);
    const auto num_experts = 4 + static_cast<std::int32_t>(random() % 60);
    ModelShape model = uniform_model(1 + random() % 5, num_experts);
    model.layers.push_back({});
    model.layers.push_back({1 + num_experts / 2, 0, 1, 77});
    std::vector<Deployment> deployments;
    if (seed % 2 == 1) deployments.push_back(deployment("", keep_all(model)));
    const unsigned num = 1 + random() % (seed % 10 == 0 ? 7 : 3);
    for (unsigned i = 0; i < num; ++i) {
      const auto keep =
          1 + static_cast<std::int32_t>(random() % static_cast<unsigned>(num_experts));
      deployments.push_back(deployment(std::to_string(i), random_kept(model, keep, random)));
    }
    const auto capacity = 1 + static_cast<std::int32_t>(random() % 20);
    const PlaceOptions options = options_of(64, capacity);

    Placement current;
    // Deploy one after the other, then take them away in the same order.
    std::vector<Deployment> active;
    const auto check = [&] {
      const auto next = placed(model, active, options, current);
      EXPECT_EQ(next.workers().size(), least_workers(model, active, capacity)) << "seed " << seed;
      for (const auto& one : active) {
        EXPECT_GE(workers_of(next, one.kept).size(), least_workers(model, {one}, capacity));
      }
      EXPECT_EQ(placed(model, active, options, next), next) << "seed " << seed;
      current = next;
    };
    for (const auto& one : deployments) {
      active.push_back(one);
      check();
    }
    while (!active.empty()) {
      active.erase(active.begin());
      check();
    }
    EXPECT_TRUE(current.workers().empty());
    if (HasFailure()) return;
  }
}

TEST(PlaceExperts, PrefersTheFirstWorkersAndStaysWithRunningOnes) {
  const ModelShape model = uniform_model(2, 8);
  const std::vector<Deployment> full = {deployment("", keep_all(model))};
  PlaceOptions options{
      .policy = PlacementPolicy::kMembership, .workers = {{7}, {3}, {9}}, .capacity_per_layer = 4};
  const auto first = placed(model, full, options);
  EXPECT_THAT(first.workers(), ElementsAre(WorkerId{3}, WorkerId{7}));
  options.workers = {{1}, {9}, {3}, {7}};
  EXPECT_EQ(placed(model, full, options, first), first);
  // Worker 7 is gone: 3 keeps what it has, the preferred newcomer takes the rest.
  options.workers = {{1}, {9}, {3}};
  const auto second = placed(model, full, options, first);
  EXPECT_THAT(second.workers(), ElementsAre(WorkerId{1}, WorkerId{3}));
  EXPECT_EQ(second.experts_of({3}), first.experts_of({3}));
}

TEST(PlaceExperts, SmallerCapacityMovesOnlyWhatIsTooMuch) {
  const ModelShape model = uniform_model(1, 12);
  const std::vector<Deployment> full = {deployment("", keep_all(model))};
  const auto before = placed(model, full, options_of(4, 6));
  const auto after = placed(model, full, options_of(4, 4), before);
  EXPECT_EQ(after.workers().size(), 3u);
  EXPECT_EQ(move_cost(model, before, after).experts_loaded, 4);
}

TEST(PlaceExperts, KeepsTheEpochOfCurrent) {
  const ModelShape model = uniform_model(1, 4);
  Placement current;
  current.epoch = {5};
  for (auto policy : {PlacementPolicy::kMembership, PlacementPolicy::kById}) {
    EXPECT_EQ(
        placed(model, {deployment("", keep_all(model))}, options_of(2, 2, policy), current).epoch,
        Epoch{5});
  }
}

TEST(PlaceExperts, RefusesWhatDoesNotFit) {
  const ModelShape model = uniform_model(3, 63);
  const std::vector<Deployment> full = {deployment("", keep_all(model))};
  const auto error_of = [&](const PlaceOptions& options) {
    const auto result = place_experts(model, full, options, {});
    EXPECT_FALSE(result);
    return result ? Error{} : result.error();
  };
  const Error small = error_of(options_of(4, 15));
  EXPECT_EQ(small.code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(small.message,
            "layer 0 needs 63 experts, but 4 workers of 15 per layer hold 60; over all layers room "
            "for 9000 bytes is missing; allow 5 workers, a capacity of 16, or deploy less");
  EXPECT_EQ(error_of(options_of(0, 15)).code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(error_of(options_of(4, 0)).code, ErrorCode::kInvalidArgument);
  PlaceOptions twice = options_of(4, 16);
  twice.workers[2] = twice.workers[1];
  EXPECT_THAT(error_of(twice).message, HasSubstr("worker 1 is listed twice"));

  // 8 experts fit 2 workers of 4, but not where the rule puts them.
  KeptExperts low;
  low.layers = {{0, 1, 2, 3, 4, 5, 6, 7}, {}, {}};
  const auto by_id =
      place_experts(model, {deployment("low", low)}, options_of(2, 4, PlacementPolicy::kById), {});
  ASSERT_FALSE(by_id);
  EXPECT_EQ(by_id.error().code, ErrorCode::kResourceExhausted);
  EXPECT_THAT(by_id.error().message, HasSubstr("placement by id gives worker 0 more than the 4"));
}

TEST(PlaceExperts, NothingDeployed) {
  const ModelShape model = uniform_model(2, 4);
  for (auto policy : {PlacementPolicy::kMembership, PlacementPolicy::kById}) {
    const auto placement = placed(model, {}, options_of(0, 1, policy));
    EXPECT_TRUE(placement.workers().empty());
  }
}

TEST(MoveCost, CountsCopies) {
  ModelShape model = uniform_model(2, 2);
  model.layers[1].expert_bytes = 7;
  Placement from;
  from.owners = {{{{0}}, {{1}}}, {{{0}, {1}}, {}}};
  Placement to;
  to.owners = {{{{0}}, {{0}}}, {{{1}}, {{1}, {2}}}};
  const auto cost = move_cost(model, from, to);
  EXPECT_EQ(cost.experts_loaded, 3);
  EXPECT_EQ(cost.bytes_loaded, 1000u + 7 + 7);
  EXPECT_EQ(cost.experts_dropped, 2);
  EXPECT_EQ(cost.bytes_dropped, 1000u + 7);
  EXPECT_EQ(move_cost(model, {}, from).experts_loaded, 4);
  EXPECT_EQ(move_cost(model, from, {}).experts_dropped, 4);
}

TEST(PlaceExperts, LargeFleetTakesWellUnderASecond) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(NDEBUG)
  constexpr std::chrono::seconds kBound{20};
#else
  constexpr std::chrono::seconds kBound{1};
#endif
  const ModelShape model = uniform_model(60, 256);
  std::mt19937 random(5);
  std::vector<Deployment> deployments = {deployment("", keep_all(model))};
  for (int i = 0; i < 7; ++i) {
    deployments.push_back(deployment(std::to_string(i), random_kept(model, 48, random)));
  }
  const PlaceOptions options = options_of(256, 1);
  const auto by_id =
      place_experts(model, deployments, options_of(256, 1, PlacementPolicy::kById), {});
  ASSERT_TRUE(by_id);
  for (const Placement& current : {Placement{}, *by_id}) {
    const auto start = Clock::now();
    const auto placement = place_experts(model, deployments, options, current);
    const auto took = Clock::now() - start;
    ASSERT_TRUE(placement) << placement.error().message;
    EXPECT_EQ(placement_fault(model, deployments, options, *placement), "");
    EXPECT_LT(took, kBound) << std::chrono::duration<double>(took).count() << " s";
  }
}

}  // namespace
}  // namespace moiety::planner
