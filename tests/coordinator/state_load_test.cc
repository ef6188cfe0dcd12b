// What routers observed, and what plans make of it.
#include <gmock/gmock.h>

#include <cmath>

#include "coordinator/observed_load.h"
#include "tests/coordinator/simulation.h"

namespace moiety::coordinator {
namespace {

using namespace std::chrono_literals;
using testing::DoubleEq;
using testing::DoubleNear;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using Counts = ObservedLoad::Counts;

constexpr Clock::time_point kStart{};

/// `tokens` for each of `experts` in every layer of the model.
Counts counts_of(const planner::ModelShape& model,
                 const std::vector<std::size_t>& experts,
                 std::uint64_t tokens) {
  Counts counts;
  for (const auto& layer : model.layers) {
    counts.emplace_back(static_cast<std::size_t>(layer.num_routed), 0);
    for (std::size_t expert : experts) counts.back()[expert] = tokens;
  }
  return counts;
}

TEST(ObservedLoad, OfATimeConstantAgoCountsAnEth) {
  const planner::ModelShape model = test_model(1, 4);
  ObservedLoad load(model);
  EXPECT_THAT(load.for_planning(), IsEmpty());
  EXPECT_EQ(load.share({0, 0}), 0);
  load.add(counts_of(model, {0}, 100), kStart);
  EXPECT_EQ(load.share({0, 0}), 1);
  load.add(counts_of(model, {1}, 100), kStart + ObservedLoad::kTimeConstant);
  const double old = std::exp(-1.0);
  EXPECT_THAT(load.share({0, 0}), DoubleNear(old / (1 + old), 1e-12));
  EXPECT_THAT(load.share({0, 1}), DoubleNear(1 / (1 + old), 1e-12));
  // In two halves it is the same.
  load.add(counts_of(model, {}, 0), kStart + 3 * ObservedLoad::kTimeConstant / 2);
  load.add(counts_of(model, {2}, 100), kStart + 2 * ObservedLoad::kTimeConstant);
  const double sum = old * old + old + 1;
  EXPECT_THAT(load.share({0, 0}), DoubleNear(old * old / sum, 1e-12));
  EXPECT_THAT(load.share({0, 2}), DoubleNear(1 / sum, 1e-12));
  // A month of silence, and the first tokens after it: they are all that there is.
  load.add(counts_of(model, {3}, 1), kStart + 24h * 30);
  EXPECT_THAT(load.share({0, 3}), DoubleEq(1));
}

TEST(ObservedLoad, WhatNobodySelectedIsEvenlySmall) {
  const planner::ModelShape model = test_model(2, 4);
  ObservedLoad load(model);
  Counts counts = counts_of(model, {}, 0);
  counts[0] = {400, 0, 1, 0};
  load.add(counts, kStart);
  const auto planned = load.for_planning();
  ASSERT_THAT(planned, SizeIs(2));
  const double unseen = 0.01 * 401 / 4;
  EXPECT_THAT(planned[0],
              ElementsAre(DoubleEq(400), DoubleEq(unseen), DoubleEq(unseen), DoubleEq(unseen)));
  EXPECT_THAT(planned[1], ElementsAre(1, 1, 1, 1));
}

TEST(ObservedLoad, OwnersShareWhatFallsToAnExpert) {
  const planner::ModelShape model = test_model(1, 4);
  ObservedLoad load(model);
  Placement placement;
  placement.owners = {{{{0}}, {{0}, {2}}, {{2}}, {}}};
  EXPECT_THAT(load.shares(placement, 3), ElementsAre(0, 0, 0));
  Counts counts = {{10, 20, 30, 40}};
  load.add(counts, kStart);
  EXPECT_THAT(load.shares(placement, 3), ElementsAre(DoubleEq(0.2), 0, DoubleEq(0.4)));
}

TEST(ObservedLoad, KnowsTheModelsShape) {
  const planner::ModelShape model = test_model(2, 4);
  const ObservedLoad load(model);
  EXPECT_TRUE(load.fits(counts_of(model, {}, 0)));
  EXPECT_FALSE(load.fits({}));
  EXPECT_FALSE(load.fits({{0, 0, 0, 0}}));
  EXPECT_FALSE(load.fits({{0, 0, 0, 0}, {0, 0, 0}}));
  EXPECT_FALSE(load.fits({{0, 0, 0, 0}, {0, 0, 0, 0}, {}}));
}

/// 20 places of a layer for 16 experts that should have two copies: four get a second one.
class Partial : public testing::Test {
 protected:
  static ClusterConfig config() {
    ClusterConfig config = test_config();
    config.capacity_per_layer = 5;
    config.replicas = 2;
    config.move_headroom = 1;
    return config;
  }
  explicit Partial(const ClusterConfig& config = Partial::config()) : sim(config) {
    finish(sim.start({full_deployment()}));
    router = sim.add_router();
    sim.advance(1s);
  }

  void finish(OperationId operation) {
    sim.finish(operation);
    EXPECT_TRUE(sim.succeeded(operation)) << sim.error(operation);
  }
  void report(int key, const std::vector<std::size_t>& experts, std::uint64_t tokens) {
    sim.routers.at(key).outbox.push_back(
        proto::ExpertLoad{counts_of(sim.config.model, experts, tokens)});
    sim.run();
  }
  /// Experts with more than one copy in the layer.
  std::vector<std::size_t> doubled(std::size_t layer) const {
    std::vector<std::size_t> found;
    const auto& owners = sim.state.published()->placement.owners[layer];
    for (std::size_t expert = 0; expert < owners.size(); ++expert) {
      if (owners[expert].size() > 1) found.push_back(expert);
    }
    return found;
  }

  Simulation sim;
  int router = 0;
};

TEST_F(Partial, ARebalanceGivesTheCopiesToWhatIsHotNow) {
  const Placement before = sim.state.published()->placement;
  for (std::size_t layer = 0; layer < 3; ++layer) ASSERT_THAT(doubled(layer), SizeIs(4));
  for (const std::vector<std::size_t>& hot :
       {std::vector<std::size_t>{12, 13, 14, 15}, {4, 6, 8, 10}, {4, 6, 8, 15}}) {
    const auto was = doubled(0);
    report(router, hot, 1000);
    sim.advance(10min);
    report(router, hot, 1000);
    EXPECT_EQ(doubled(0), was) << "nobody asked for a change";
    const OperationId moved = sim.rebalance();
    finish(moved);
    for (std::size_t layer = 0; layer < 3; ++layer) EXPECT_EQ(doubled(layer), hot);
    // What stays hot is not read again.
    std::vector<std::size_t> fresh;
    std::set_difference(hot.begin(), hot.end(), was.begin(), was.end(), std::back_inserter(fresh));
    const auto read = sim.state.operation(moved)->cost.experts_loaded;
    EXPECT_GE(read, static_cast<std::int64_t>(3 * fresh.size()));
    EXPECT_LE(read, static_cast<std::int64_t>(6 * fresh.size())) << "one makes room for another";
  }
  EXPECT_NE(sim.state.published()->placement.owners, before.owners);
  // The same load again: nothing to do.
  const auto settled = sim.state.published()->placement;
  finish(sim.rebalance());
  EXPECT_EQ(sim.state.published()->placement, settled);
}

TEST_F(Partial, OtherChangesLeaveTheCopiesWhereTheyAre) {
  const Placement before = sim.state.published()->placement;
  report(router, {12, 13, 14, 15}, 1000);
  finish(sim.undrain(WorkerId{1}));  // planned anew, and nothing else is asked
  EXPECT_EQ(sim.state.published()->placement.owners, before.owners);
  sim.kill_process(WorkerId{2});
  sim.advance(5s);
  EXPECT_EQ(sim.state.published()->placement.owners, before.owners);
}

TEST_F(Partial, ReportsOfAllRoutersCountAlsoOfThoseThatAreGone) {
  const int other = sim.add_router();
  sim.advance(1s);
  report(router, {8, 9, 10, 11}, 300);
  report(other, {12, 13, 14, 15}, 500);
  report(router, {8, 9}, 300);
  sim.close_router(other);
  sim.routers.erase(other);
  sim.advance(10s);
  ASSERT_THAT(sim.status().routers, SizeIs(1));
  finish(sim.rebalance());
  EXPECT_THAT(doubled(0), testing::Contains(8)) << "600";
  EXPECT_THAT(doubled(0), testing::Contains(9));
  // 500 before 300.
  EXPECT_THAT(doubled(0),
              testing::Not(testing::AnyOf(testing::Contains(10), testing::Contains(11))));
}

TEST_F(Partial, StatusShowsTheObservedLoad) {
  for (const GroupStatus& each : sim.status().groups) EXPECT_EQ(each.load, 0);
  for (const WorkerStatus& each : sim.status().workers) EXPECT_EQ(each.load, 0);
  finish(sim.deploy(random_subset("python", 4, 1)));
  const auto& python = sim.state.published()->deployments.back().kept;
  Counts counts = counts_of(sim.config.model, {}, 0);
  for (std::size_t layer = 0; layer < counts.size(); ++layer) {
    for (std::size_t expert = 0; expert < counts[layer].size(); ++expert) {
      const bool kept = std::binary_search(python.layers[layer].begin(), python.layers[layer].end(),
                                           static_cast<std::int32_t>(expert));
      counts[layer][expert] = kept ? 9 : 1;  // 36 of 48
    }
  }
  sim.routers.at(router).outbox.push_back(proto::ExpertLoad{counts});
  sim.run();
  const ClusterStatus status = sim.status();
  ASSERT_THAT(status.groups, SizeIs(2));
  for (const GroupStatus& each : status.groups)
    EXPECT_THAT(each.load, DoubleNear(each.members.size() == 2 ? 0.75 : 0.25, 1e-9));
  double sum = 0;
  for (const WorkerStatus& each : status.workers) {
    EXPECT_GT(each.load, 0);
    sum += each.load;
  }
  EXPECT_THAT(sum, DoubleNear(1, 1e-9));
}

TEST_F(Partial, AnotherModelsShapeEndsTheConnection) {
  report(router, {12, 13, 14, 15}, 100);
  const ConnectionId connection = *sim.routers.at(router).connection;
  sim.routers.at(router).outbox.push_back(proto::ExpertLoad{{{1, 2, 3}}});
  sim.run();
  EXPECT_NE(sim.routers.at(router).connection, connection);
  EXPECT_THAT(testing::PrintToString(sim.trace), HasSubstr("other layers and experts"));
  if (!sim.routers.at(router).connection) sim.reconnect_router(router);
  sim.advance(1s);
  EXPECT_EQ(sim.view(router).placement.epoch, sim.state.published()->placement.epoch);
  finish(sim.rebalance());
  EXPECT_THAT(doubled(0), ElementsAre(12, 13, 14, 15)) << "what was counted before stays";
}

TEST_F(Partial, ARestartOfTheCoordinatorForgetsTheLoadAndMovesNothing) {
  report(router, {12, 13, 14, 15}, 100);
  finish(sim.rebalance());
  const Placement before = sim.state.published()->placement;
  sim.crash_coordinator();
  sim.reconnect_router(router);
  sim.advance(1s);
  EXPECT_EQ(sim.status().groups.at(0).load, 0);
  finish(sim.rebalance());
  EXPECT_EQ(sim.state.published()->placement.owners, before.owners);
}

class PartialEplb : public Partial {
 protected:
  static ClusterConfig config() {
    ClusterConfig config = Partial::config();
    config.policy = planner::PlacementPolicy::kEplb;
    return config;
  }
  PartialEplb() : Partial(config()) {}
};

TEST_F(PartialEplb, TheHottestExpertGetsMostCopies) {
  const Placement before = sim.state.published()->placement;
  Counts counts =
      counts_of(sim.config.model, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}, 10);
  for (auto& layer : counts) layer[15] = 1000;
  sim.routers.at(router).outbox.push_back(proto::ExpertLoad{counts});
  sim.advance(1min);
  EXPECT_EQ(sim.state.published()->placement.owners, before.owners);
  finish(sim.rebalance());
  for (const auto& layer : sim.state.published()->placement.owners)
    EXPECT_THAT(layer[15], SizeIs(4)) << "one on each worker";
  const ClusterStatus status = sim.status();
  for (const WorkerStatus& each : status.workers) EXPECT_THAT(each.load, DoubleNear(0.25, 0.02));
}

}  // namespace
}  // namespace moiety::coordinator
