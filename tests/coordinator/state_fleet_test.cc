// Drains, replicas, stand-ins, moves in steps, and fleets that somebody else starts.
#include <gmock/gmock.h>

#include "tests/coordinator/simulation.h"

namespace moiety::coordinator {
namespace {

using namespace std::chrono_literals;
using testing::AllOf;
using testing::Contains;
using testing::Each;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

class Cluster : public testing::Test {
 protected:
  explicit Cluster(const ClusterConfig& config, std::vector<Deployment> first) : sim(config) {
    if (config.static_fleet) {
      for (std::uint32_t id = 0; id < config.max_workers; ++id) sim.join(WorkerId{id});
      sim.run();
    }
    const OperationId started = sim.start(std::move(first));
    sim.finish(started);
    EXPECT_TRUE(sim.succeeded(started)) << sim.error(started);
    router = sim.add_router();
    sim.advance(3s);
    EXPECT_TRUE(sim.status().ready);
  }
  Simulation sim;
  int router = 0;
};

/// Room for one worker less than there are.
class Roomy : public Cluster {
 protected:
  static ClusterConfig config() {
    ClusterConfig config = test_config();
    config.capacity_per_layer = 6;
    return config;
  }
  Roomy() : Cluster(config(), {full_deployment()}) {}
};

// Drains.

TEST_F(Roomy, DrainMovesExpertsAwayAndEndsTheWorker) {
  ASSERT_THAT(sim.running(), SizeIs(3));
  const OperationId drained = sim.drain(WorkerId{1});
  sim.finish(drained);
  EXPECT_TRUE(sim.succeeded(drained)) << sim.error(drained);
  EXPECT_THAT(sim.running(), AllOf(SizeIs(3), Not(Contains(WorkerId{1}))));
  EXPECT_TRUE(sim.status().ready);
  EXPECT_GT(sim.state.operation(drained)->cost.bytes_loaded, 0u);
  // Nothing brings it back but an undrain, also not another coordinator.
  sim.crash_coordinator();
  sim.reconnect_router(router);
  sim.finish(sim.deploy(random_subset("python", 4, 1)));
  EXPECT_THAT(sim.running(), Not(Contains(WorkerId{1})));
  const auto workers = sim.status().workers;
  const auto shown = std::find_if(workers.begin(), workers.end(),
                                  [](const WorkerStatus& each) { return each.id == WorkerId{1}; });
  ASSERT_NE(shown, workers.end());
  EXPECT_TRUE(shown->drained);
  const OperationId back = sim.undrain(WorkerId{1});
  sim.finish(back);
  const OperationId other = sim.drain(WorkerId{3});
  sim.finish(other);
  EXPECT_TRUE(sim.succeeded(other)) << sim.error(other);
  EXPECT_THAT(sim.running(), Contains(WorkerId{1}));
}

TEST_F(Roomy, DrainThatTheOthersHaveNoRoomForIsRefused) {
  sim.finish(sim.drain(WorkerId{3}));
  const EpochView before = *sim.state.published();
  const OperationId drained = sim.drain(WorkerId{0});
  sim.finish(drained);
  EXPECT_EQ(sim.results.at(drained)->code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(*sim.state.published(), before);
  // It is used as before.
  sim.finish(sim.undrain(WorkerId{3}));
  sim.advance(1s);
  EXPECT_THAT(sim.running(), Contains(WorkerId{0}));
  const OperationId unknown = sim.drain(WorkerId{9});
  EXPECT_EQ(sim.results.at(unknown)->code, ErrorCode::kNotFound);
}

TEST(DrainInBytes, NamesTheMissingBytes) {
  ClusterConfig config = test_config();
  config.capacity_per_layer = 0;
  config.capacity_bytes = 1300;  // 4 workers: 5200 for 4800
  Simulation sim(config);
  sim.finish(sim.start({full_deployment()}));
  const OperationId drained = sim.drain(WorkerId{0});
  sim.finish(drained);
  EXPECT_THAT(sim.error(drained), HasSubstr("900 bytes are missing"));
}

TEST_F(Roomy, DrainThatCannotLoadIsTakenBack) {
  sim.load_error = Error{ErrorCode::kIo, "No space left on device"};
  const OperationId drained = sim.drain(WorkerId{1});
  sim.finish(drained);
  EXPECT_THAT(sim.error(drained), AllOf(HasSubstr("No space left"), HasSubstr("rolled back")));
  sim.load_error.reset();
  sim.advance(2s);
  EXPECT_THAT(sim.running(), Contains(WorkerId{1}));
  EXPECT_EQ(sim.experts_resident(), 48u);
  EXPECT_TRUE(sim.status().ready);
}

TEST(Drains, AWorkerThatLoadsForTooLongGoesOnServing) {
  ClusterConfig config = test_config();
  config.capacity_per_layer = 6;
  config.policy = planner::PlacementPolicy::kById;  // on all four
  Simulation sim(config);
  sim.finish(sim.start({full_deployment()}));
  sim.add_router();
  sim.advance(1s);
  const EpochView before = *sim.state.published();
  sim.loads_hang = true;
  const OperationId drained = sim.drain(WorkerId{1});
  sim.finish(drained, 130s);
  EXPECT_EQ(sim.results.at(drained)->code, ErrorCode::kDeadlineExceeded) << sim.error(drained);
  EXPECT_TRUE(std::any_of(sim.processes.begin(), sim.processes.end(), [](const auto& entry) {
    return !entry.second.resident.empty() && !entry.second.inbox.empty();
  })) << "nobody that serves was asked to load";
  sim.advance(300s);
  EXPECT_EQ(sim.status().worker_losses, 0u) << "slow storage ended a worker that serves";
  EXPECT_EQ(sim.state.published()->workers, before.workers);
  sim.loads_hang = false;
  sim.advance(2s);
  EXPECT_EQ(sim.experts_resident(), 48u);
  EXPECT_TRUE(sim.status().ready);
}

// Moves.

TEST(Moves, ALargeOneTakesSeveralEpochsWithinTheHeadroom) {
  ClusterConfig config = test_config();  // every worker is full
  config.policy = planner::PlacementPolicy::kById;
  Simulation sim(config);
  sim.finish(sim.start({full_deployment()}));
  sim.add_router();
  sim.advance(1s);
  // Another rule, the same state: half of all experts move.
  sim.config.policy = planner::PlacementPolicy::kRoundRobin;
  sim.crash_coordinator();
  sim.reconnect_router(0);
  const std::uint64_t epochs = sim.state.published()->placement.epoch.value;
  const OperationId moved = sim.rebalance();
  sim.finish(moved, 60s);
  EXPECT_TRUE(sim.succeeded(moved)) << sim.error(moved);
  EXPECT_GT(sim.state.published()->placement.epoch.value, epochs + 2);
  EXPECT_LE(sim.most_held, 15u) << "12 and a quarter";
  EXPECT_EQ(sim.experts_resident(), 48u);
}

TEST(Moves, OneThatStopsOnItsWaySaysWhere) {
  Simulation sim(test_config());
  sim.config.policy = planner::PlacementPolicy::kById;
  sim.crash_coordinator();
  sim.finish(sim.start({full_deployment()}));
  const int router = sim.add_router();
  sim.advance(1s);
  sim.config.policy = planner::PlacementPolicy::kRoundRobin;
  sim.crash_coordinator();
  sim.reconnect_router(router);
  const EpochView before = *sim.state.published();
  const OperationId moved = sim.rebalance();
  sim.advance(4900ms);
  sim.now += 150ms;  // the grace is over: step by step, one message at a time
  sim.tick();
  for (int i = 0; i < 1000 && sim.state.operation(moved)->step < 3; ++i) {
    for (auto& [id, process] : sim.processes) {
      sim.step_process(id);
      sim.deliver(process.outbox, process.connection);
    }
    sim.deliver_one(router);
  }
  ASSERT_EQ(sim.state.operation(moved)->step, 3u);
  sim.routers[router].confirms = false;
  sim.advance(130s);
  ASSERT_TRUE(sim.done(moved));
  EXPECT_THAT(sim.error(moved), HasSubstr("(stopped after step "));
  EXPECT_FALSE(sim.state.operation(moved)->rolled_back);
  EXPECT_EQ(sim.state.published()->deployments, before.deployments);
  EXPECT_NE(sim.state.published()->placement.owners, before.placement.owners);
  sim.routers[router].confirms = true;
  const OperationId again = sim.rebalance();
  sim.finish(again, 60s);
  EXPECT_TRUE(sim.succeeded(again)) << sim.error(again);
}

TEST(Moves, WithoutHeadroomTheyAreRefusedWithTheBytes) {
  ClusterConfig config = test_config();
  config.policy = planner::PlacementPolicy::kById;
  config.move_headroom = 0.05;
  Simulation sim(config);
  sim.finish(sim.start({full_deployment()}));
  sim.advance(1s);
  sim.config.policy = planner::PlacementPolicy::kRoundRobin;
  sim.crash_coordinator();
  const EpochView before = *sim.state.published();
  const OperationId moved = sim.rebalance();
  sim.finish(moved, 60s);
  ASSERT_FALSE(sim.succeeded(moved));
  EXPECT_EQ(sim.results.at(moved)->code, ErrorCode::kResourceExhausted);
  EXPECT_THAT(sim.error(moved), HasSubstr("lacks 40 bytes"));
  EXPECT_EQ(*sim.state.published(), before);
}

// Loss.

/// The others have room for what a lost one held.
class Spare : public Cluster {
 protected:
  static ClusterConfig config() {
    ClusterConfig config = test_config();
    config.capacity_per_layer = 6;
    config.move_headroom = 1;
    return config;
  }
  Spare() : Cluster(config(), {full_deployment()}) {}
};

TEST_F(Spare, OthersTakeOverAtOnceAndTheRestartBringsThePlacementBack) {
  const auto placement = sim.state.published()->placement;
  ASSERT_THAT(placement.workers(), SizeIs(3));
  const WorkerId victim = *placement.workers().begin();
  sim.freeze_new = true;  // its successor takes its time
  sim.kill_process(victim);
  sim.run();
  EXPECT_TRUE(sim.status().ready) << "nobody took its experts over";
  EXPECT_EQ(sim.status().experts_missing, 0u);
  EXPECT_EQ(sim.view(router).placement.epoch, sim.state.published()->placement.epoch);
  sim.freeze_new = false;
  sim.processes.at(victim).frozen = false;
  sim.advance(2s);
  EXPECT_EQ(sim.state.published()->placement.owners, placement.owners);
  EXPECT_EQ(sim.experts_resident(), 48u) << "those that stood in still hold them";
}

TEST_F(Roomy, AFirstLossIsMadeGoodWithoutAWait) {
  sim.kill_process(WorkerId{1});
  EXPECT_TRUE(sim.processes.contains(WorkerId{1})) << "started in the same instant";
}

TEST_F(Roomy, AStandInThatCannotLoadGoesOnServing) {
  sim.load_error = Error{ErrorCode::kNotFound, "model.safetensors: no such file"};
  sim.freeze_new = true;
  sim.finish(sim.deploy(random_subset("python", 4, 1)), 60s);
  sim.kill_process(WorkerId{1});
  sim.advance(1s);
  EXPECT_THAT(sim.running(), AllOf(Contains(WorkerId{0}), Contains(WorkerId{2})));
  EXPECT_EQ(sim.status().worker_losses, 1u);
  EXPECT_THAT(sim.view(router).workers, SizeIs(2));
}

class Replicated : public Cluster {
 protected:
  static ClusterConfig config() {
    ClusterConfig config = test_config();
    config.capacity_per_layer = 8;
    config.replicas = 2;
    return config;
  }
  Replicated() : Cluster(config(), {full_deployment()}) {}
};

TEST_F(Replicated, ALossLeavesEveryExpertServed) {
  ASSERT_THAT(sim.running(), SizeIs(4));
  EXPECT_EQ(sim.status().replicas_missing, 0u);
  sim.freeze_new = true;
  sim.kill_process(WorkerId{1});
  sim.run();
  EXPECT_THAT(sim.view(router).workers, SizeIs(3));
  EXPECT_TRUE(sim.status().ready);
  EXPECT_EQ(sim.status().experts_missing, 0u);
  EXPECT_GT(sim.status().replicas_missing, 0u);
  sim.processes.at(WorkerId{1}).frozen = false;
  sim.advance(1s);
  EXPECT_EQ(sim.status().replicas_missing, 0u);
}

// Experts on routers.

class Mixed : public Cluster {
 protected:
  static ClusterConfig config() {
    ClusterConfig config = test_config();
    config.router_expert_bytes = 24 * config.model.layers[0].expert_bytes;
    return config;
  }
  Mixed() : Cluster(config(), {full_deployment()}) {}
};

TEST_F(Mixed, WorkersHoldTheRestAlsoAfterChangesAndACrash) {
  EXPECT_THAT(sim.view(router).placement.router_experts, SizeIs(24));
  EXPECT_EQ(sim.experts_resident(), 24u) << "half of them";
  EXPECT_EQ(sim.status().router_experts, 24u);
  EXPECT_EQ(sim.status().groups.at(0).on_routers, 24u);
  const OperationId deployed = sim.deploy(random_subset("python", 4, 1));
  sim.finish(deployed);
  EXPECT_TRUE(sim.succeeded(deployed)) << sim.error(deployed);
  // What both keep is held by routers now.
  const Deployment python = random_subset("python", 4, 1);
  for (const ExpertId id : sim.view(router).placement.router_experts)
    EXPECT_TRUE(sim.view(router)
                    .placement
                    .owners[static_cast<std::size_t>(id.layer)][static_cast<std::size_t>(id.expert)]
                    .empty());
  for (std::size_t layer = 0; layer < python.kept.layers.size(); ++layer) {
    for (const std::int32_t expert : python.kept.layers[layer])
      EXPECT_THAT(sim.view(router).placement.router_experts,
                  Contains(ExpertId{static_cast<std::int32_t>(layer), expert}));
  }
  const Placement before = sim.state.published()->placement;
  sim.crash_coordinator();
  sim.reconnect_router(router);
  sim.advance(6s);
  EXPECT_EQ(sim.state.published()->placement.router_experts, before.router_experts);
  sim.finish(sim.undeploy(""));
  EXPECT_THAT(sim.view(router).placement.router_experts, SizeIs(12)) << "all that python keeps";
  EXPECT_EQ(sim.experts_resident(), 0u);
  EXPECT_TRUE(sim.status().ready);
}

TEST_F(Mixed, AFailedChangeBringsThemBack) {
  const EpochView before = sim.view(router);
  sim.load_error = Error{ErrorCode::kNotFound, "model.safetensors: no such file"};
  const OperationId deployed = sim.deploy(random_subset("python", 4, 1));
  sim.finish(deployed, 200s);
  EXPECT_FALSE(sim.succeeded(deployed));
  EXPECT_EQ(sim.view(router).placement.router_experts, before.placement.router_experts);
  EXPECT_EQ(sim.view(router).placement.owners, before.placement.owners);
}

TEST_F(Mixed, ARouterThatCannotReadThemUndoesTheChange) {
  const EpochView before = sim.view(router);
  sim.routers[router].confirms = false;
  const OperationId deployed = sim.deploy(random_subset("python", 4, 1));
  sim.run();
  const Epoch wanted = sim.state.published()->placement.epoch;
  ASSERT_GT(wanted, before.placement.epoch);
  ASSERT_FALSE(sim.done(deployed));
  // Of an older epoch, it says nothing about this change.
  const auto report = [&](Epoch epoch) {
    sim.routers[router].outbox.push_back(
        proto::EpochActive{epoch, {}, "model.safetensors: no such file"});
    sim.run();
  };
  report(before.placement.epoch);
  EXPECT_EQ(sim.state.published()->placement.epoch, wanted);
  report(wanted);
  sim.routers[router].confirms = true;
  sim.finish(deployed);
  EXPECT_FALSE(sim.succeeded(deployed));
  EXPECT_THAT(sim.error(deployed),
              AllOf(HasSubstr("router"), HasSubstr("no such file"), HasSubstr("rolled back")));
  EXPECT_EQ(sim.view(router).placement.router_experts, before.placement.router_experts);
  EXPECT_EQ(sim.view(router).placement.owners, before.placement.owners);
}

TEST_F(Mixed, RoomForAllOfThemNeedsNoWorker) {
  ClusterConfig config = test_config();
  config.router_expert_bytes = std::uint64_t{1} << 40;
  Simulation alone(config);
  const int only = alone.add_router();
  const OperationId started = alone.start({full_deployment()});
  alone.finish(started);
  EXPECT_TRUE(alone.succeeded(started)) << alone.error(started);
  EXPECT_THAT(alone.running(), IsEmpty());
  EXPECT_THAT(alone.view(only).placement.router_experts, SizeIs(48));
  EXPECT_TRUE(alone.status().ready);
}

// Static fleets.

ClusterConfig static_config(std::int32_t capacity_per_layer) {
  ClusterConfig config = test_config();
  config.static_fleet = true;
  config.capacity_per_layer = capacity_per_layer;
  return config;
}

class Static : public Cluster {
 protected:
  Static() : Cluster(static_config(6), {full_deployment()}) {}
};

TEST(StaticStart, WaitsForItsWorkers) {
  Simulation sim(static_config(6));
  const OperationId started = sim.start({full_deployment()});
  sim.advance(5s);
  EXPECT_FALSE(sim.done(started));
  EXPECT_THAT(sim.state.operation(started)->waiting_for, HasSubstr("0 of 4"));
  sim.join(WorkerId{0});
  sim.join(WorkerId{1});
  sim.advance(5s);  // too few for all experts
  EXPECT_FALSE(sim.done(started));
  EXPECT_THAT(sim.state.operation(started)->waiting_for, HasSubstr("more workers"));
  sim.join(WorkerId{3});
  sim.finish(started, 5s);  // enough, and no other one joined for a while
  EXPECT_TRUE(sim.succeeded(started)) << sim.error(started);
}

TEST(StaticStart, WaitsForItsWorkersAsLongAsTheyTake) {
  Simulation sim(static_config(6));
  const OperationId started = sim.start({full_deployment()});
  sim.advance(3 * sim.config.operation_timeout);
  EXPECT_FALSE(sim.done(started));
  EXPECT_THAT(sim.trace, Contains(HasSubstr("still waiting for workers to join: 0 of 4")));
  for (std::uint32_t id = 0; id < 3; ++id) sim.join(WorkerId{id});
  sim.finish(started, 5s);
  EXPECT_TRUE(sim.succeeded(started)) << sim.error(started);
}

TEST(StaticStart, FailsWhenAllAreThereAndHaveNoRoom) {
  Simulation sim(static_config(1));
  const OperationId started = sim.start({full_deployment()});
  for (std::uint32_t id = 0; id < 4; ++id) sim.join(WorkerId{id});
  sim.finish(started, 5s);
  EXPECT_FALSE(sim.succeeded(started));
}

TEST(StaticStart, WorkersSayTheirCapacities) {
  ClusterConfig config = static_config(0);
  config.capacity_bytes = 1000;
  config.max_workers = 2;
  Simulation sim(config);
  sim.join(WorkerId{0}, 4000);
  sim.join(WorkerId{1});
  const OperationId started = sim.start({full_deployment()});
  sim.finish(started);
  ASSERT_TRUE(sim.succeeded(started)) << sim.error(started);
  EXPECT_EQ(
      sim.processes.at(WorkerId{0}).resident.size() + sim.processes.at(WorkerId{1}).resident.size(),
      48u);
  EXPECT_LE(sim.processes.at(WorkerId{1}).resident.size(), 10u);
  EXPECT_EQ(sim.status().workers.at(0).capacity_bytes, 4000u);
}

TEST_F(Static, WhoIsNotNeededIdles) {
  EXPECT_THAT(sim.running(), SizeIs(4));
  EXPECT_THAT(sim.state.published()->workers, SizeIs(3));
  EXPECT_TRUE(sim.processes.at(WorkerId{3}).resident.empty());
  EXPECT_EQ(sim.status().workers.at(3).state, WorkerState::kIdle);
  sim.finish(sim.deploy(random_subset("python", 4, 1)));
  const OperationId undeployed = sim.undeploy("");
  sim.finish(undeployed);
  EXPECT_TRUE(sim.succeeded(undeployed)) << sim.error(undeployed);
  EXPECT_THAT(sim.running(), SizeIs(4));
  EXPECT_EQ(sim.experts_resident(), 12u);
}

TEST_F(Static, TheOthersTakeALostOnesExpertsOverForGood) {
  const WorkerId victim = *sim.state.published()->placement.workers().begin();
  sim.kill_process(victim);
  sim.run();
  EXPECT_TRUE(sim.status().ready) << "taken over in the same instant";
  EXPECT_THAT(sim.status().lost, IsEmpty()) << "nothing is missing, and it may stay away";
  EXPECT_THAT(sim.status().deployments.at(0).lost_workers, Contains(victim));
  sim.advance(10s);
  EXPECT_THAT(sim.state.published()->placement.workers(), Not(Contains(victim)));
  EXPECT_TRUE(sim.status().ready);
  EXPECT_EQ(sim.experts_resident(), 48u);
  EXPECT_FALSE(sim.status().operation) << "placed anew, and at rest";
  const ClusterStatus status = sim.status();
  EXPECT_EQ(status.operations_ended.at({OperationKind::kRebalance, true}), 1u)
      << "though nobody asked for it";
  planner::MoveCost moved;
  for (const OperationStatus& each : status.operations) moved += each.cost;
  EXPECT_EQ(status.moved, moved);
}

TEST_F(Static, AWorkerThatWasCutOffComesBackWithWhatItHolds) {
  const WorkerId victim = *sim.state.published()->placement.workers().begin();
  const auto owners = sim.state.published()->placement.owners;
  sim.break_connection(victim);
  sim.advance(2s);
  EXPECT_EQ(sim.state.published()->placement.owners, owners);
  EXPECT_TRUE(sim.status().ready);
}

TEST_F(Static, AWorkerThatHangsIsLeftOutUntilItComesBack) {
  const WorkerId victim{0};
  sim.freeze(victim);
  sim.advance(4s);  // its lease
  EXPECT_TRUE(sim.status().ready);
  for (const WorkerEndpoint& each : sim.view(router).workers) EXPECT_NE(each.id, victim);
  sim.processes.at(victim).frozen = false;
  sim.advance(15s);
  EXPECT_TRUE(sim.status().ready);
  EXPECT_EQ(sim.experts_resident(), 48u);
}

TEST_F(Static, TooLittleRoomLeavesTheRestMissingUntilSomebodyJoins) {
  for (std::uint32_t id : {0u, 1u}) sim.kill_process(WorkerId{id});
  sim.advance(15s);
  EXPECT_FALSE(sim.status().ready);
  EXPECT_GT(sim.status().experts_missing, 0u);
  EXPECT_THAT(sim.status().lost, Not(IsEmpty()));
  EXPECT_LT(sim.status().experts_missing, 36u) << "the others did not take what they could";
  sim.join(WorkerId{1});
  sim.advance(15s);
  EXPECT_TRUE(sim.status().ready);
  EXPECT_EQ(sim.status().experts_missing, 0u);
  EXPECT_EQ(sim.experts_resident(), 48u);
}

TEST(StaticStandIns, AFailedLoadIsTriedAgainBeforeAnMpiWorldIsGivenUp) {
  ClusterConfig config = static_config(3);  // five of six hold everything only with the headroom
  config.max_workers = 6;
  Simulation sim(config);
  for (std::uint32_t id = 0; id < config.max_workers; ++id) sim.join(WorkerId{id});
  sim.finish(sim.start({full_deployment()}));
  sim.add_router();
  sim.advance(1s);
  sim.load_error = Error{ErrorCode::kIo, "No space left on device"};
  sim.kill_process(WorkerId{0});
  sim.advance(1s);
  EXPECT_GT(sim.status().experts_missing, 0u);
  sim.load_error.reset();
  sim.advance(3s);  // `moiety up` waits for 5 s
  EXPECT_EQ(sim.status().experts_missing, 0u);
}

TEST_F(Static, DrainedWorkersIdle) {
  const OperationId drained = sim.drain(WorkerId{0});
  sim.finish(drained);
  EXPECT_TRUE(sim.succeeded(drained)) << sim.error(drained);
  sim.advance(1s);
  EXPECT_TRUE(sim.processes.at(WorkerId{0}).resident.empty());
  EXPECT_TRUE(sim.status().workers.at(0).drained);
}

TEST_F(Static, LossDuringAChangeIsPlannedAnew) {
  sim.finish(sim.deploy(random_subset("python", 4, 1)));
  const OperationId drained = sim.drain(WorkerId{0});
  sim.kill_process(WorkerId{3});  // it was to take worker 0's experts
  sim.finish(drained, 60s);
  ASSERT_FALSE(sim.succeeded(drained)) << "two workers cannot hold everything";
  EXPECT_EQ(sim.results.at(drained)->code, ErrorCode::kResourceExhausted);
  sim.advance(5s);
  EXPECT_TRUE(sim.status().ready);
}

TEST_F(Static, WorkersWithoutAnIdGetOne) {
  proto::Hello hello = sim.hello(proto::Role::kWorker, 0, 9001);
  hello.id.reset();
  EXPECT_THAT(sim.knock(hello), HasSubstr("4 workers already"));
  sim.kill_process(WorkerId{2});
  EXPECT_EQ(sim.knock(hello), "");
  EXPECT_THAT(sim.knock(sim.hello(proto::Role::kWorker, 0, 9002)), HasSubstr("already connected"));
  EXPECT_THAT(sim.knock(sim.hello(proto::Role::kWorker, 7, 9003)), HasSubstr("--workers 4"));
}

TEST_F(Static, AWorkerWhoseHostVanishedComesBackUnderItsId) {
  sim.freeze(WorkerId{1});  // its connection stays, and nothing comes over it
  proto::Hello again = sim.hello(proto::Role::kWorker, 1, 9001);
  EXPECT_EQ(sim.knock_code(again), ErrorCode::kUnavailable) << "it is to ask again";
  sim.advance(1s);
  EXPECT_THAT(sim.knock(again),
              AllOf(HasSubstr("worker 1 is already connected"), HasSubstr("its lease of 3000 ms")));
  EXPECT_EQ(sim.knock_code(again), ErrorCode::kUnavailable);
  sim.advance(3s);  // the lease is over
  EXPECT_EQ(sim.knock(again), "");
}

TEST_F(Static, AWorkerWhoseConnectionEndedIsLetInAtOnce) {
  proto::Hello again = sim.hello(proto::Role::kWorker, 1, 9001);
  EXPECT_EQ(sim.knock_code(again), ErrorCode::kUnavailable);
  sim.kill_process(WorkerId{1});
  EXPECT_EQ(sim.knock(again), "");
}

TEST_F(Static, TwoLiveWorkersWithOneIdAreToldSo) {
  proto::Hello other = sim.hello(proto::Role::kWorker, 1, 9001);
  EXPECT_EQ(sim.knock_code(other), ErrorCode::kUnavailable);
  sim.advance(1s);
  EXPECT_EQ(sim.knock_code(other), ErrorCode::kUnavailable) << "it may have vanished since";
  sim.advance(500ms);
  EXPECT_THAT(sim.knock(other),
              AllOf(HasSubstr("worker 1"), HasSubstr("two processes"), HasSubstr("--id")));
  EXPECT_EQ(sim.status().worker_losses, 0u);
  other.incarnation = 9002;
  EXPECT_EQ(sim.knock_code(other), ErrorCode::kUnavailable) << "a third may be the successor";
}

TEST_F(Static, WhatOneWasToldDoesNotCountForTheNextThatLooksTheSame) {
  const proto::Hello same = sim.hello(proto::Role::kWorker, 1, 9001);
  EXPECT_EQ(sim.knock_code(same), ErrorCode::kUnavailable);
  sim.advance(1500ms);
  EXPECT_EQ(sim.knock_code(same), ErrorCode::kAlreadyExists);
  sim.freeze(WorkerId{1});  // its host vanishes, and somebody gives its id to another
  EXPECT_EQ(sim.knock_code(same), ErrorCode::kUnavailable);
  sim.advance(2s);
  EXPECT_EQ(sim.knock_code(same), ErrorCode::kUnavailable);
  sim.advance(2s);
  EXPECT_EQ(sim.knock(same), "");
}

TEST_F(Static, WhoEndedWhileItAskedDoesNotCountEither) {
  const proto::Hello same = sim.hello(proto::Role::kWorker, 1, 9001);
  EXPECT_EQ(sim.knock_code(same), ErrorCode::kUnavailable);
  sim.advance(10s);
  sim.freeze(WorkerId{1});
  EXPECT_EQ(sim.knock_code(same), ErrorCode::kUnavailable);
  sim.advance(2s);
  EXPECT_EQ(sim.knock_code(same), ErrorCode::kUnavailable);
  sim.advance(2s);
  EXPECT_EQ(sim.knock(same), "");
}

TEST_F(Static, ManyWithOneIdAreAllToldSo) {
  std::vector<proto::Hello> asking;
  for (std::uint64_t incarnation = 9001; incarnation <= 9020; ++incarnation)
    asking.push_back(sim.hello(proto::Role::kWorker, 1, incarnation));
  const Clock::time_point end = sim.now + 10s;
  std::size_t told_first = 0;
  while (!asking.empty() && sim.now < end) {
    const std::size_t told = std::erase_if(asking, [&](const proto::Hello& each) {
      return sim.knock_code(each) == ErrorCode::kAlreadyExists;
    });
    if (told_first == 0) told_first = told;
    sim.advance(200ms);
  }
  EXPECT_THAT(asking, IsEmpty()) << "some would ask for ever";
  EXPECT_EQ(told_first, 8u) << "no more are kept in mind at a time";
  EXPECT_EQ(sim.status().worker_losses, 0u);
}

TEST(StaticStart, AskingOnceASecondIsEnoughForAnyLease) {
  ClusterConfig config = test_config();
  config.static_fleet = true;
  config.lease_ttl = 600ms;
  Simulation sim(config);
  sim.join(WorkerId{1});
  sim.run();
  const proto::Hello other = sim.hello(proto::Role::kWorker, 1, 9001);
  EXPECT_EQ(sim.knock_code(other), ErrorCode::kUnavailable);
  sim.advance(1s);
  EXPECT_EQ(sim.knock_code(other), ErrorCode::kAlreadyExists);
}

TEST_F(Static, AfterAPauseOfTheCoordinatorNobodyWasHeard) {
  sim.freeze(WorkerId{1});
  proto::Hello again = sim.hello(proto::Role::kWorker, 1, 9001);
  EXPECT_EQ(sim.knock_code(again), ErrorCode::kUnavailable);
  sim.now += 2s;
  sim.tick();
  EXPECT_EQ(sim.knock_code(again), ErrorCode::kUnavailable);
  sim.advance(4s);
  EXPECT_EQ(sim.knock(again), "");
}

TEST_F(Static, ARouterWhoseHostVanishedComesBackUnderItsId) {
  const std::uint32_t id = sim.routers.at(router).id.value;
  proto::Hello again = sim.hello(proto::Role::kRouter, id, 9001);
  EXPECT_EQ(sim.knock_code(again), ErrorCode::kUnavailable);
  sim.advance(2s);
  EXPECT_EQ(sim.knock_code(again), ErrorCode::kAlreadyExists) << "both live";
  sim.routers.at(router).frozen = true;
  again.incarnation = 9002;
  EXPECT_EQ(sim.knock_code(again), ErrorCode::kUnavailable);
  sim.advance(4s);
  EXPECT_EQ(sim.knock(again), "");
}

TEST_F(Static, RouterIdsDoNotRunOut) {
  EXPECT_THAT(sim.knock(sim.hello(proto::Role::kRouter, 4294967295u, 9001)),
              AllOf(HasSubstr("4294967295"), HasSubstr("2147483647"), HasSubstr("--id")));
  EXPECT_EQ(sim.knock_code(sim.hello(proto::Role::kRouter, 2147483648u, 9001)),
            ErrorCode::kInvalidArgument);
  const proto::Hello last = sim.hello(proto::Role::kRouter, 2147483647u, 9002);
  EXPECT_EQ(sim.knock(last), "");
  proto::Hello next = sim.hello(proto::Role::kRouter, 0, 9003);
  next.id.reset();
  EXPECT_EQ(sim.knock(next), "");
  EXPECT_EQ(sim.state.durable().router_counter, 2147483649u);
  // With the id that it got it comes back.
  next.id = 2147483648u;
  EXPECT_EQ(sim.knock(next), "");
  sim.disk->router_counter = 4294967295u;
  sim.crash_coordinator();
  next = sim.hello(proto::Role::kRouter, 0, 9004);
  next.id.reset();
  EXPECT_THAT(sim.knock(next), HasSubstr("--id of its own"));
  EXPECT_EQ(sim.state.durable().router_counter, 4294967295u);
}

TEST_F(Static, ShutdownTellsTheWorkers) {
  sim.event(ShutdownRequest{"test"});
  sim.close_router(router);
  sim.advance(1s);
  EXPECT_TRUE(sim.exited);
  EXPECT_THAT(sim.running(), IsEmpty());
}

// Status.

TEST_F(Replicated, StatusSaysWhoHoldsWhat) {
  const ClusterStatus status = sim.status();
  EXPECT_EQ(status.replicas, 2);
  ASSERT_THAT(status.epochs, SizeIs(1));
  EXPECT_THAT(status.epochs[0].routers, SizeIs(1));
  ASSERT_THAT(status.groups, SizeIs(1));
  EXPECT_EQ(status.groups[0].copies, 96u);
  for (const WorkerStatus& each : status.workers) EXPECT_EQ(each.bytes, 2400u);
  ASSERT_FALSE(status.operations.empty());
  EXPECT_EQ(status.operations[0].kind, OperationKind::kStart);
  EXPECT_EQ(status.operations[0].id, OperationId{"op-0001"});
}

}  // namespace
}  // namespace moiety::coordinator
