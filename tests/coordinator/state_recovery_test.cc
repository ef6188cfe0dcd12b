// A coordinator that is killed and started again, and clients that ask twice.
#include <gmock/gmock.h>

#include "tests/coordinator/simulation.h"

namespace moiety::coordinator {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

/// A cluster of four workers that serves the full model and "python" to two routers.
class Recovery : public testing::Test {
 protected:
  Recovery() : Recovery(test_config()) {}
  explicit Recovery(const ClusterConfig& config) : sim(config) {
    sim.finish(sim.start({full_deployment()}));
    sim.finish(sim.deploy(random_subset("python", 4, 1)));
    first = sim.add_router();
    second = sim.add_router();
    sim.advance(1s);
    EXPECT_TRUE(sim.status().ready);
  }
  void reconnect_routers() {
    for (auto& [key, router] : sim.routers) {
      if (!router.connection) sim.reconnect_router(key);
    }
  }
  Simulation sim;
  int first = 0;
  int second = 0;
};

TEST_F(Recovery, NothingHappensToServing) {
  const EpochView before = *sim.state.published();
  const std::set<WorkerId> running = sim.running();
  std::map<WorkerId, std::uint64_t> incarnations;
  for (const auto& [id, process] : sim.processes) incarnations[id] = process.incarnation;
  for (int i = 0; i < 5; ++i) {
    sim.crash_coordinator();
    EXPECT_EQ(sim.status().experts_missing, 0u) << "its workers are taken to be there";
    EXPECT_EQ(sim.status().not_ready, "no router is connected");
    sim.advance(500ms);
    reconnect_routers();
    EXPECT_TRUE(sim.status().ready) << sim.status().not_ready;
    sim.advance(10s);
    EXPECT_EQ(*sim.state.published(), before) << "the epoch changed without need";
  }
  EXPECT_EQ(sim.running(), running);
  for (const auto& [id, process] : sim.processes) EXPECT_EQ(process.incarnation, incarnations[id]);
  EXPECT_EQ(sim.status().worker_losses, 0u);
  EXPECT_EQ(sim.experts_resident(), 48u);
}

TEST_F(Recovery, AWorkerThatDiedMeanwhileIsReplaced) {
  sim.end_unseen(WorkerId{2});
  sim.crash_coordinator();
  reconnect_routers();
  sim.advance(1s);
  EXPECT_TRUE(sim.status().ready);
  EXPECT_THAT(sim.running(), SizeIs(4));
  EXPECT_THAT(sim.view(first).workers, SizeIs(4));
}

TEST_F(Recovery, AWorkerThatDoesNotComeBackIsMissedAfterTheGrace) {
  sim.freeze(WorkerId{2});
  sim.crash_coordinator();
  reconnect_routers();
  sim.advance(4s);
  EXPECT_THAT(sim.state.published()->workers, SizeIs(4));
  sim.advance(3s);
  EXPECT_EQ(sim.status().worker_losses, 1u);
  EXPECT_TRUE(sim.status().ready) << "not replaced";
}

TEST_F(Recovery, AChangeGoesOnWhereverItWasCut) {
  // The undeploy is cut after 0, 1, 2, ... of the actions of every event, one run for each.
  int cut_before_it_began = 0;
  for (std::size_t actions = 0; actions < 12; ++actions) {
    Simulation cluster(test_config());
    cluster.finish(cluster.start({full_deployment(), random_subset("python", 4, 1)}));
    const int router = cluster.add_router();
    cluster.advance(1s);
    cluster.crash_within_next_event(actions);
    const OperationId undeployed = cluster.undeploy("");
    cluster.reconnect_router(router);
    for (int i = 0; i < 40 && !cluster.done(undeployed); ++i) {
      if (i % 5 == 0) cluster.crash_within_next_event(actions);
      cluster.advance(700ms);
      if (!cluster.routers.at(router).connection) cluster.reconnect_router(router);
    }
    cluster.advance(100ms);
    if (!cluster.routers.at(router).connection) cluster.reconnect_router(router);
    cluster.finish(undeployed, 200s);
    EXPECT_TRUE(cluster.succeeded(undeployed)) << actions << ": " << cluster.error(undeployed);
    cluster.advance(20s);
    EXPECT_THAT(cluster.state.published()->deployments, SizeIs(1)) << actions;
    EXPECT_THAT(cluster.running(), SizeIs(1)) << actions;
    EXPECT_EQ(cluster.experts_resident(), 12u) << actions;
    cut_before_it_began += actions == 0 ? 1 : 0;
  }
  EXPECT_EQ(cut_before_it_began, 1);
}

TEST_F(Recovery, ARouterThatKnowsMoreThanTheStateIsFollowed) {
  const Epoch published = sim.state.published()->placement.epoch;
  sim.crash_coordinator();
  sim.routers.at(first).active = Epoch{published.value + 50};
  for (EpochView& view : sim.routers.at(first).usable) view.placement.epoch.value += 50;
  sim.reconnect_router(first);
  sim.run();
  EXPECT_GT(sim.state.published()->placement.epoch.value, published.value + 50);
  EXPECT_EQ(sim.view(first).placement.epoch, sim.state.published()->placement.epoch);
}

TEST_F(Recovery, NothingIsDroppedWhileARouterMayUseWhatTheNewCoordinatorDoesNotKnow) {
  sim.routers[second].confirms = false;  // stays with the epoch that has the full model
  const OperationId undeployed = sim.undeploy("");
  sim.advance(2s);
  sim.crash_coordinator();
  sim.reconnect_router(first);
  sim.advance(3s);
  EXPECT_EQ(sim.experts_resident(), 48u);
  sim.reconnect_router(second);  // within the grace
  sim.advance(20s);
  EXPECT_EQ(sim.experts_resident(), 48u) << "router 1 still uses the old epoch";
  EXPECT_FALSE(sim.done(undeployed));
  sim.routers[second].confirms = true;
  sim.finish(undeployed);
  EXPECT_TRUE(sim.succeeded(undeployed)) << sim.error(undeployed);
  EXPECT_EQ(sim.experts_resident(), 12u);
}

TEST_F(Recovery, AnUndeployAsksAgainForWhatRuns) {
  sim.routers[second].running = {{"", 1}};
  sim.advance(400ms);
  const OperationId undeployed = sim.undeploy("");
  sim.advance(2s);
  sim.crash_coordinator();
  sim.reconnect_router(first);
  sim.advance(3s);  // the second is late, within the grace
  sim.reconnect_router(second);
  sim.advance(30s);
  EXPECT_FALSE(sim.done(undeployed));
  EXPECT_THAT(sim.state.published()->deployments, SizeIs(2)) << "a request of it runs";
  EXPECT_EQ(sim.experts_resident(), 48u);
  sim.routers[second].running.clear();
  sim.finish(undeployed);
  EXPECT_TRUE(sim.succeeded(undeployed)) << sim.error(undeployed);
}

TEST_F(Recovery, RestoredStartChangesNothing) {
  const EpochView before = *sim.state.published();
  sim.crash_coordinator();
  const OperationId started = sim.start({full_deployment()});
  EXPECT_TRUE(sim.succeeded(started)) << sim.error(started);
  EXPECT_EQ(*sim.state.published(), before);
}

TEST_F(Recovery, RefusesTheStateOfAnotherCheckpointOrALargerFleet) {
  ClusterConfig config = test_config();
  EXPECT_TRUE(ClusterState::check_restorable(config, *sim.disk));
  config.max_workers = 2;
  EXPECT_THAT(ClusterState::check_restorable(config, *sim.disk).error().message,
              HasSubstr("at least --workers 4"));
  config = test_config();
  config.model = test_model(3, 8);
  EXPECT_THAT(ClusterState::check_restorable(config, *sim.disk).error().message,
              HasSubstr("other layers"));
}

// Operation ids.

TEST_F(Recovery, TheSameIdIsTheSameOperation) {
  const DeployRequest request{{{}, {"mine"}, {}}, random_subset("german", 4, 2)};
  const RequestId one = sim.call(request);
  const RequestId two = sim.call(request);  // while it runs
  EXPECT_TRUE(sim.accepted.contains({"mine"}));
  sim.advance(5s);
  ASSERT_TRUE(sim.answers.contains(one) && sim.answers.contains(two));
  EXPECT_FALSE(sim.answers.at(one).error);
  EXPECT_FALSE(sim.answers.at(two).error);
  const Epoch epoch = sim.state.published()->placement.epoch;
  const RequestId three = sim.call(request);  // after it ended
  EXPECT_FALSE(sim.answers.at(three).error);
  sim.crash_coordinator();
  const RequestId four = sim.call(request);  // and after a crash
  ASSERT_TRUE(sim.answers.contains(four));
  EXPECT_FALSE(sim.answers.at(four).error);
  EXPECT_EQ(sim.state.published()->placement.epoch, epoch) << "it was executed again";
}

TEST_F(Recovery, AFailureIsKeptToo) {
  const UndeployRequest request{{{}, {"mine"}, {}}, "law"};
  EXPECT_EQ(sim.answers.at(sim.call(request)).error->code, ErrorCode::kNotFound);
  const RequestId again = sim.call(request);
  EXPECT_EQ(sim.answers.at(again).error->code, ErrorCode::kNotFound);
  EXPECT_FALSE(sim.answers.at(again).refused) << "it failed, and was not refused";
  EXPECT_EQ(sim.status().operations_ended.at({OperationKind::kUndeploy, false}), 1u);
  sim.finish(sim.deploy(random_subset("law", 4, 2)));
  sim.crash_coordinator();
  EXPECT_EQ(sim.answers.at(sim.call(request)).error->code, ErrorCode::kNotFound);
}

TEST_F(Recovery, AnotherChangeUnderTheSameIdIsAConflict) {
  const RequestId one = sim.call(DeployRequest{{{}, {"mine"}, {}}, random_subset("law", 4, 2)});
  const RequestId two = sim.call(DeployRequest{{{}, {"mine"}, {}}, random_subset("law", 4, 3)});
  const RequestId three = sim.call(UndeployRequest{{{}, {"mine"}, {}}, "law"});
  sim.advance(5s);
  EXPECT_FALSE(sim.answers.at(one).error);
  EXPECT_EQ(sim.answers.at(two).error->code, ErrorCode::kAlreadyExists);
  EXPECT_TRUE(sim.answers.at(two).refused);
  EXPECT_EQ(sim.answers.at(three).error->code, ErrorCode::kAlreadyExists);
}

TEST_F(Recovery, WithoutAnIdEachCallIsAnOperation) {
  const RequestId one = sim.call(UndeployRequest{{}, "law"});
  const RequestId two = sim.call(UndeployRequest{{}, "law"});
  EXPECT_NE(sim.answers.at(one).operation, sim.answers.at(two).operation);
  const RequestId long_id = sim.call(UndeployRequest{{{}, {std::string(129, 'x')}, {}}, "law"});
  EXPECT_EQ(sim.answers.at(long_id).error->code, ErrorCode::kInvalidArgument);
}

TEST_F(Recovery, AnEpochThatIsNotTheExpectedOneIsAConflict) {
  const Epoch now = sim.state.published()->placement.epoch;
  const RequestId stale = sim.call(UndeployRequest{{{}, {"a"}, Epoch{now.value - 1}}, "python"});
  EXPECT_EQ(sim.answers.at(stale).error->code, ErrorCode::kStaleEpoch);
  const RequestId fresh = sim.call(UndeployRequest{{{}, {"b"}, now}, "python"});
  const RequestId during = sim.call(UndeployRequest{{{}, {"c"}, now}, ""});
  EXPECT_EQ(sim.answers.at(during).error->code, ErrorCode::kStaleEpoch);
  sim.advance(10s);
  ASSERT_TRUE(sim.answers.contains(fresh));
  EXPECT_FALSE(sim.answers.at(fresh).error);
  // Asked again, the epoch is another one by now: still the same operation.
  const RequestId again = sim.call(UndeployRequest{{{}, {"b"}, now}, "python"});
  EXPECT_FALSE(sim.answers.at(again).error);
}

TEST_F(Recovery, TheLast256OperationsAreKept) {
  for (int i = 0; i < 300; ++i) {
    sim.call(UndeployRequest{{{}, {fmt::format("id-{}", i)}, {}}, "law"});
  }
  EXPECT_TRUE(sim.state.operation({"id-299"}));
  EXPECT_TRUE(sim.state.operation({"id-44"}));
  EXPECT_FALSE(sim.state.operation({"id-43"}));
  EXPECT_THAT(sim.disk->operations, SizeIs(256));
}

TEST_F(Recovery, TwoHundredCyclesLeaveNothingBehind) {
  const std::size_t resident = sim.experts_resident();
  const EpochView before = *sim.state.published();
  for (int i = 0; i < 200; ++i) {
    const OperationId deployed = sim.deploy(random_subset("cycle", 5, 7));
    sim.finish(deployed);
    ASSERT_TRUE(sim.succeeded(deployed)) << i << ": " << sim.error(deployed);
    const OperationId undeployed = sim.undeploy("cycle");
    sim.finish(undeployed);
    ASSERT_TRUE(sim.succeeded(undeployed)) << i << ": " << sim.error(undeployed);
  }
  sim.advance(1s);
  EXPECT_EQ(sim.experts_resident(), resident);
  EXPECT_EQ(sim.state.published()->deployments, before.deployments);
  EXPECT_THAT(sim.running(), SizeIs(4));
  EXPECT_LE(sim.status().epochs.size(), 1u);
  EXPECT_EQ(sim.status().worker_losses, 0u);
}

}  // namespace
}  // namespace moiety::coordinator
