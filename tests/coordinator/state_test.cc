#include "coordinator/state.h"

#include <gmock/gmock.h>

#include "tests/coordinator/simulation.h"

namespace moiety::coordinator {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

std::size_t union_size(const std::vector<Deployment>& deployments) {
  std::set<ExpertId> all;
  for (const Deployment& deployment : deployments) {
    for (std::size_t layer = 0; layer < deployment.kept.layers.size(); ++layer) {
      for (std::int32_t expert : deployment.kept.layers[layer])
        all.insert({static_cast<std::int32_t>(layer), expert});
    }
  }
  return all.size();
}

/// A cluster of four workers that serves the full model to one router.
class ServingCluster : public testing::Test {
 protected:
  ServingCluster() : ServingCluster(test_config()) {}
  explicit ServingCluster(const ClusterConfig& config) : sim(config) {
    const OperationId started = sim.start({full_deployment()});
    sim.finish(started);
    EXPECT_TRUE(sim.succeeded(started)) << sim.error(started);
    router = sim.add_router();
    sim.advance(1s);
  }
  Simulation sim;
  int router = 0;
  std::int64_t pid_ = 90000;
};

class NoRestarts : public ServingCluster {
 protected:
  static ClusterConfig config() {
    ClusterConfig config = test_config();
    config.restart_workers = false;
    return config;
  }
  NoRestarts() : ServingCluster(config()) {}
};

TEST(Start, ServesTheFullModelOnAllWorkers) {
  Simulation sim(test_config());
  const OperationId started = sim.start({full_deployment()});
  EXPECT_EQ(sim.state.published(), nullptr) << "published before anything was loaded";
  sim.finish(started);
  EXPECT_TRUE(sim.succeeded(started));
  EXPECT_THAT(sim.running(), SizeIs(4));
  EXPECT_EQ(sim.experts_resident(), 3u * 16u);
  EXPECT_EQ(sim.status().experts_resident, 3u * 16u) << "done before the workers said so";
}

TEST(Ready, NeedsARouterThatUsesAnEpoch) {
  Simulation sim(test_config());
  EXPECT_EQ(sim.status().not_ready, "nothing is served yet");
  sim.loads_hang = true;
  const OperationId started = sim.start({full_deployment()});
  sim.run();
  EXPECT_EQ(sim.status().not_ready,
            "nothing is served yet; waiting for worker 0 to load its experts");
  sim.loads_hang = false;
  sim.finish(started);
  EXPECT_FALSE(sim.status().ready);
  EXPECT_EQ(sim.status().not_ready, "no router is connected");
  const int router = sim.add_router();
  sim.routers.at(router).confirms = false;
  sim.run();
  EXPECT_EQ(sim.status().not_ready, "no router uses an epoch yet");
  sim.routers.at(router).confirms = true;
  sim.run();
  EXPECT_TRUE(sim.status().ready) << sim.status().not_ready;
  // While the next epoch is not confirmed, the former one is used.
  sim.routers.at(router).confirms = false;
  sim.deploy(random_subset("python", 4, 1));
  sim.run();
  EXPECT_TRUE(sim.status().ready) << sim.status().not_ready;
  sim.routers.at(router).confirms = true;
  sim.run();
  // One router is enough; one that is away may be dead.
  const int other = sim.add_router();
  sim.run();
  sim.kill_router(router);
  EXPECT_TRUE(sim.status().ready) << sim.status().not_ready;
  sim.kill_router(other);
  EXPECT_FALSE(sim.status().ready);
  EXPECT_EQ(sim.status().not_ready, "no router is connected");
}

TEST(Start, WithNothingDeployedStartsNoWorker) {
  Simulation sim(test_config());
  const OperationId started = sim.start({});
  sim.finish(started);
  EXPECT_TRUE(sim.succeeded(started));
  EXPECT_THAT(sim.running(), IsEmpty());
  const OperationId deployed = sim.deploy(random_subset("python", 4, 1));
  sim.finish(deployed);
  EXPECT_TRUE(sim.succeeded(deployed));
  EXPECT_THAT(sim.running(), SizeIs(1));
}

TEST(Start, FailsWhenWorkersKeepEnding) {
  Simulation sim(test_config());
  sim.crash = "exit status 1";
  const OperationId started = sim.start({full_deployment()});
  sim.finish(started);
  EXPECT_THAT(sim.error(started), HasSubstr("exit status 1"));
  EXPECT_EQ(sim.state.published(), nullptr);
}

TEST(Start, ModelThatDoesNotFitIsRefusedWithTheCounts) {
  ClusterConfig config = test_config();
  config.capacity_per_layer = 3;
  Simulation sim(config);
  const OperationId started = sim.start({full_deployment()});
  EXPECT_THAT(sim.error(started), HasSubstr("16"));
  EXPECT_THAT(sim.running(), IsEmpty());
}

TEST_F(ServingCluster, ARouterOnEveryAddressIsShownWhereItConnectsFrom) {
  const auto shown = [this](std::uint32_t id, const char* listens, const char* remote) {
    proto::Hello hello = sim.hello(proto::Role::kRouter, id, 1);
    hello.http_address = listens;
    sim.event(PeerHello{ConnectionId{1000 + id}, hello, remote});
    return sim.status().routers.back().http_address;
  };
  EXPECT_EQ(shown(20, "0.0.0.0:8000", "10.1.2.3:4711"), "10.1.2.3:8000");
  EXPECT_EQ(shown(21, "[::]:8000", "[fd00::7]:4711"), "[fd00::7]:8000");
  EXPECT_EQ(shown(22, "10.9.9.9:8000", "10.1.2.3:4711"), "10.9.9.9:8000");
  EXPECT_EQ(shown(23, "0.0.0.0:8000", "(unknown)"), "0.0.0.0:8000");
}

TEST_F(ServingCluster, RouterGetsTheEpochWithItsWelcome) {
  EXPECT_EQ(sim.view(router), *sim.state.published());
  EXPECT_THAT(sim.view(router).workers, SizeIs(4));
}

TEST_F(ServingCluster, DeploysTwoDomainsAndUndeployingTheFullModelFreesWorkers) {
  const Deployment python = random_subset("python", 4, 1);
  const Deployment german = random_subset("german", 4, 2);
  for (const Deployment& each : {python, german}) {
    const OperationId deployed = sim.deploy(each);
    sim.finish(deployed);
    EXPECT_TRUE(sim.succeeded(deployed)) << sim.error(deployed);
  }
  EXPECT_THAT(sim.view(router).deployments, SizeIs(3));
  const OperationId undeployed = sim.undeploy("");
  sim.finish(undeployed);
  EXPECT_TRUE(sim.succeeded(undeployed)) << sim.error(undeployed);
  EXPECT_THAT(sim.running(), SizeIs(2));  // at most 8 experts per layer, 4 per worker
  EXPECT_EQ(sim.experts_resident(), union_size({python, german}));
  EXPECT_EQ(sim.status().experts_resident, union_size({python, german}))
      << "done, but the status still shows what the workers held before";
  EXPECT_THAT(sim.view(router).deployments, SizeIs(2));
}

TEST_F(ServingCluster, TakenAndUnknownNamesAreRefused) {
  const OperationId again = sim.deploy(full_deployment());
  EXPECT_THAT(sim.error(again), HasSubstr("tiny is deployed already"));
  const OperationId unknown = sim.undeploy("law");
  EXPECT_EQ(sim.results.at(unknown)->code, ErrorCode::kNotFound);
}

TEST_F(ServingCluster, UndeployWaitsForRunningRequests) {
  const OperationId deployed = sim.deploy(random_subset("python", 4, 1));
  sim.finish(deployed);
  sim.routers[router].running = {{"", 2}, {"python", 1}};
  sim.advance(1s);
  const OperationId undeployed = sim.undeploy("");
  sim.advance(10s);
  EXPECT_FALSE(sim.done(undeployed));
  EXPECT_TRUE(sim.view(router).deployments.at(0).draining);
  EXPECT_EQ(sim.experts_resident(), 48u) << "dropped experts of running requests";
  sim.routers[router].running = {{"python", 1}};
  sim.finish(undeployed);
  EXPECT_TRUE(sim.succeeded(undeployed));
  EXPECT_THAT(sim.running(), SizeIs(1));
}

TEST_F(ServingCluster, UndeployDoesNotTrustAReportFromBeforeTheDrain) {
  const OperationId deployed = sim.deploy(random_subset("python", 4, 1));
  sim.finish(deployed);
  sim.routers[router].confirms = false;
  const OperationId undeployed = sim.undeploy("");
  sim.advance(2s);  // heartbeats say 0, but of an epoch that still admits requests
  EXPECT_FALSE(sim.done(undeployed));
  EXPECT_TRUE(sim.state.published()->deployments.at(0).draining);
  sim.routers[router].confirms = true;
  sim.finish(undeployed);
  EXPECT_TRUE(sim.succeeded(undeployed));
}

TEST_F(ServingCluster, UndeployThatDrainsForTooLongIsTakenBack) {
  sim.routers[router].running = {{"", 1}};
  const OperationId undeployed = sim.undeploy("");
  sim.finish(undeployed, 700s);
  EXPECT_THAT(sim.error(undeployed), HasSubstr("1 running requests of tiny"));
  sim.run();
  EXPECT_FALSE(sim.view(router).deployments.at(0).draining);
}

TEST_F(ServingCluster, NothingIsDroppedBeforeTheLastRouterSwitched) {
  const int slow = sim.add_router();
  sim.finish(sim.deploy(random_subset("python", 4, 1)));
  sim.routers[slow].running = {{"", 1}};
  const OperationId undeployed = sim.undeploy("");
  sim.advance(1s);
  ASSERT_TRUE(sim.view(slow).deployments.at(0).draining);
  sim.routers[slow].confirms = false;  // the next epoch, which is without the full model
  sim.routers[slow].running.clear();
  sim.advance(5s);
  EXPECT_THAT(sim.view(router).deployments, SizeIs(1));
  EXPECT_FALSE(sim.done(undeployed));
  EXPECT_EQ(sim.experts_resident(), 48u);
  sim.close_router(slow);  // it may come back until its lease is over
  sim.advance(2s);
  EXPECT_EQ(sim.experts_resident(), 48u);
  sim.routers.erase(slow);
  sim.finish(undeployed, 3s);
  EXPECT_TRUE(sim.succeeded(undeployed));
  EXPECT_EQ(sim.experts_resident(), 12u);
}

// Loss.

/// The four ways in which a worker is lost; each must end with an epoch without it and a fenced
/// process.
using Loss = void (*)(Simulation&, WorkerId);
class LostWorkerTest : public ServingCluster,
                       public testing::WithParamInterface<std::pair<const char*, Loss>> {};

TEST_P(LostWorkerTest, IsLeftOutAtOnceAndServesAgainAfterARestart) {
  const WorkerId victim{1};
  const std::uint64_t before = sim.processes.at(victim).incarnation;
  const auto old_owners = sim.view(router).placement.owners;
  sim.load_error = Error{ErrorCode::kIo, "not yet"};  // so that the epoch without it can be seen
  GetParam().second(sim, victim);
  sim.run();
  EXPECT_THAT(sim.view(router).workers, SizeIs(3));
  EXPECT_EQ(sim.view(router).placement.owners, old_owners) << "the placement must not change";
  ASSERT_THAT(sim.status().lost, SizeIs(1));
  EXPECT_EQ(sim.status().lost[0].id, victim);
  EXPECT_EQ(sim.status().lost[0].deployments, std::vector<std::string>{"tiny"});
  EXPECT_FALSE(sim.status().ready);

  sim.load_error.reset();
  sim.advance(10s);
  EXPECT_THAT(sim.view(router).workers, SizeIs(4));
  EXPECT_GT(sim.processes.at(victim).incarnation, before);
  EXPECT_EQ(sim.experts_resident(), 48u);
  EXPECT_TRUE(sim.status().ready);
  EXPECT_GE(sim.status().worker_losses, 1u);
  EXPECT_GE(sim.status().worker_restarts, 1u);
}

INSTANTIATE_TEST_SUITE_P(
    Ways,
    LostWorkerTest,
    testing::Values(std::pair("ProcessExit",
                              Loss([](Simulation& sim, WorkerId id) { sim.kill_process(id); })),
                    std::pair("ConnectionEnd", Loss([](Simulation& sim, WorkerId id) {
                                sim.break_connection(id);
                                EXPECT_TRUE(sim.processes.at(id).killed) << "not fenced";
                              })),
                    std::pair("Lease", Loss([](Simulation& sim, WorkerId id) {
                                sim.freeze(id);
                                const std::uint64_t kills = sim.kills;
                                sim.advance(3200ms);
                                EXPECT_EQ(sim.kills, kills + 1) << "not fenced";
                              })),
                    std::pair("Suspect", Loss([](Simulation& sim, WorkerId id) {
                                sim.freeze(id);
                                sim.routers.at(0).outbox.push_back(proto::WorkerSuspect{
                                    id, sim.processes.at(id).incarnation, "no answer within 2 s"});
                                const std::uint64_t kills = sim.kills;
                                sim.run();
                                EXPECT_EQ(sim.kills, kills + 1) << "not fenced";
                              }))),
    [](const auto& info) { return std::string(info.param.first); });

TEST_F(ServingCluster, SuspicionOfAFormerIncarnationIsIgnored) {
  const std::uint64_t current = sim.processes.at(WorkerId{0}).incarnation;
  sim.routers[router].outbox.push_back(proto::WorkerSuspect{WorkerId{0}, current + 100, "late"});
  sim.routers[router].outbox.push_back(proto::WorkerSuspect{WorkerId{77}, 1, "no such worker"});
  sim.run();
  EXPECT_EQ(sim.kills, 0u);
  EXPECT_TRUE(sim.status().ready);
}

TEST_F(ServingCluster, UnreachableWorkerInEpochActiveIsFenced) {
  sim.routers[router].outbox.push_back(
      proto::EpochActive{sim.view(router).placement.epoch, {WorkerId{2}}});
  sim.run();
  EXPECT_EQ(sim.kills, 1u);
}

/// The same cluster and a second router.
class TwoRouters : public ServingCluster {
 protected:
  TwoRouters() : other(sim.add_router()) { sim.advance(1s); }
  void suspects(int key, WorkerId id) {
    sim.routers[key].outbox.push_back(
        proto::WorkerSuspect{id, sim.processes.at(id).incarnation, "no answer within 1 s"});
    sim.run();
  }
  const int other;
};

TEST_F(TwoRouters, OneThatLostItsWayTakesNoWorkerFromTheOther) {
  for (int i = 0; i < 20; ++i) {
    for (auto& [id, process] : sim.processes) suspects(router, id);
    for (auto& [id, process] : sim.processes) process.dispatches += 10;
    sim.advance(1s);
  }
  EXPECT_EQ(sim.kills, 0u);
  EXPECT_EQ(sim.status().worker_losses, 0u);
}

TEST_F(TwoRouters, BothAreBelievedAtOnce) {
  suspects(router, WorkerId{1});
  suspects(router, WorkerId{1});
  EXPECT_EQ(sim.kills, 0u) << "the same router twice";
  suspects(other, WorkerId{1});
  EXPECT_EQ(sim.kills, 1u);
  sim.advance(1s);
  EXPECT_TRUE(sim.status().ready);
}

TEST_F(TwoRouters, AWorkerThatComputesNothingForAnybodyIsLost) {
  sim.processes.at(WorkerId{1}).dispatches = 7;  // before, and seen only afterwards
  sim.routers[other].running = {{"", 1}};
  sim.heartbeat_router(other);
  suspects(router, WorkerId{1});
  sim.advance(2900ms);
  EXPECT_EQ(sim.kills, 0u);
  sim.advance(200ms);
  EXPECT_EQ(sim.kills, 1u);
}

TEST_F(TwoRouters, WhereNoRequestRunsNobodyIsLostForComputingNothing) {
  suspects(router, WorkerId{1});
  sim.advance(20s);
  EXPECT_EQ(sim.kills, 0u);
  sim.routers[other].running = {{"", 1}};  // and it is suspected again
  sim.heartbeat_router(other);
  suspects(router, WorkerId{1});
  sim.advance(4s);
  EXPECT_EQ(sim.kills, 1u);
}

TEST_F(TwoRouters, AStoppedWorkerIsLostWhenItsHeartbeatIsLate) {
  sim.freeze(WorkerId{1});
  sim.advance(1s);
  suspects(router, WorkerId{1});
  EXPECT_EQ(sim.kills, 0u) << "a heartbeat each second";
  sim.advance(300ms);
  EXPECT_EQ(sim.kills, 1u);
  sim.freeze(WorkerId{2});
  sim.advance(1300ms);
  suspects(router, WorkerId{2});
  EXPECT_EQ(sim.kills, 2u) << "its heartbeat was late already";
}

TEST_F(ServingCluster, AWorkerWhoseSideOfTheConnectionEndedFirstIsLetInAgain) {
  Simulation::Process& process = sim.processes.at(WorkerId{1});
  proto::Hello again = sim.hello(proto::Role::kWorker, 1, process.incarnation);
  again.resident.assign(process.resident.begin(), process.resident.end());
  EXPECT_EQ(sim.knock(again), "");
  EXPECT_EQ(sim.status().worker_losses, 0u);
  EXPECT_TRUE(sim.status().ready);
  again.incarnation += 1;
  EXPECT_THAT(sim.knock(again), HasSubstr("already connected"));
}

TEST_F(ServingCluster, AWorkerWithExpertsThatTheCheckpointDoesNotHaveIsRefused) {
  const std::uint64_t incarnation = sim.processes.at(WorkerId{1}).incarnation;
  for (const ExpertId wrong : {ExpertId{3, 0}, ExpertId{0, 16}, ExpertId{4000, 0}}) {
    proto::Hello hello = sim.hello(proto::Role::kWorker, 1, incarnation);
    hello.resident = {ExpertId{0, 1}, wrong};
    EXPECT_THAT(sim.knock(hello),
                HasSubstr(fmt::format("expert {} of layer {}, which the checkpoint "
                                      "does not have",
                                      wrong.expert, wrong.layer)));
  }
  EXPECT_TRUE(sim.status().ready);
}

TEST_F(ServingCluster, ARouterIdIsNeverGivenTwice) {
  const auto join = [this] {
    proto::Hello hello = sim.hello(proto::Role::kRouter, 0, 1);
    hello.id.reset();
    hello.pid = ++pid_;
    EXPECT_EQ(sim.knock(hello), "");
    std::uint32_t most = 0;
    for (const RouterStatus& each : sim.status().routers) most = std::max(most, each.id.value);
    return most;
  };
  EXPECT_EQ(join(), 1u);
  EXPECT_EQ(join(), 2u);
  sim.close_router(router);
  sim.advance(5s);  // their leases are over: nobody is left
  EXPECT_THAT(sim.status().routers, IsEmpty());
  EXPECT_EQ(join(), 3u);
  sim.crash_coordinator();
  EXPECT_EQ(join(), 4u) << "routers 0 to 3 may come back";
  sim.reconnect_router(router);
  sim.run();
  EXPECT_TRUE(sim.routers.at(router).connection) << "refused";
}

TEST_F(ServingCluster, FencedWorkerIsNotReplacedBeforeItsProcessEnded) {
  sim.event(PeerClosed{*sim.processes.at(WorkerId{1}).connection, "reset"});
  sim.now += 10s;  // far beyond any back-off; the old process has not been reaped
  sim.tick();
  ASSERT_TRUE(sim.processes.at(WorkerId{1}).killed);  // perform() fails on a second start
  EXPECT_EQ(sim.status().workers.at(1).state, WorkerState::kLost);
}

TEST_F(ServingCluster, RestartsBackOff) {
  sim.crash = "exit status 3";
  sim.kill_process(WorkerId{1});
  sim.advance(1500ms);  // at once, since it had served; then after 0.2, +0.4, +0.8 s
  const std::uint64_t early = sim.status().worker_restarts;
  EXPECT_EQ(early, 4u);
  sim.advance(60s);
  const std::uint64_t late = sim.status().worker_restarts - early;
  EXPECT_GE(late, 10u);
  EXPECT_LE(late, 15u);  // every 5 s
  sim.crash.reset();
  sim.advance(6s);
  EXPECT_TRUE(sim.status().ready);
}

TEST_F(ServingCluster, AWorkerThatServesIsStartedAgainAtOnceAFewTimes) {
  for (int i = 0; i < 5; ++i) {
    sim.kill_process(WorkerId{1});
    sim.run();
    EXPECT_THAT(sim.running(), SizeIs(4)) << i;
    EXPECT_TRUE(sim.status().ready) << i;
  }
  sim.kill_process(WorkerId{1});
  sim.run();
  EXPECT_THAT(sim.running(), SizeIs(3)) << "it is what it computes that ends it, perhaps";
  sim.advance(300ms);
  EXPECT_THAT(sim.running(), SizeIs(4));
  for (int i = 0; i < 20; ++i) {
    sim.kill_process(WorkerId{1});
    sim.advance(450ms);
    EXPECT_TRUE(sim.status().ready)
        << i << ": what comes back and serves does not wait longer and longer";
  }
  sim.advance(11s);
  sim.kill_process(WorkerId{1});
  sim.run();
  EXPECT_THAT(sim.running(), SizeIs(4));
}

TEST_F(ServingCluster, APauseOfTheCoordinatorCostsNoWorker) {
  sim.now += 60s;
  sim.tick();
  sim.advance(5s);
  EXPECT_EQ(sim.status().worker_losses, 0u);
}

TEST_F(NoRestarts, LostWorkerStaysAwayUntilTheNextDeploy) {
  sim.kill_process(WorkerId{3});
  sim.advance(30s);
  EXPECT_THAT(sim.view(router).workers, SizeIs(3));
  EXPECT_THAT(sim.running(), SizeIs(3));
  const OperationId deployed = sim.deploy(random_subset("python", 4, 1));
  sim.finish(deployed);
  EXPECT_TRUE(sim.succeeded(deployed)) << sim.error(deployed);
  sim.run();
  EXPECT_THAT(sim.view(router).workers, SizeIs(4));
  EXPECT_TRUE(sim.status().ready);
}

TEST_F(NoRestarts, ARebalanceThatMovesNothingBringsTheLostWorkerBack) {
  sim.kill_process(WorkerId{3});
  sim.advance(30s);
  EXPECT_THAT(sim.running(), SizeIs(3));
  const OperationId rebalanced = sim.rebalance();
  sim.finish(rebalanced);
  EXPECT_TRUE(sim.succeeded(rebalanced)) << sim.error(rebalanced);
  sim.advance(2s);
  EXPECT_THAT(sim.view(router).workers, SizeIs(4));
  EXPECT_TRUE(sim.status().ready);
}

TEST_F(NoRestarts, LossDuringADeployUndoesIt) {
  const OperationId undeployed = sim.undeploy("");
  sim.finish(undeployed);
  EXPECT_THAT(sim.running(), IsEmpty());
  const OperationId deployed = sim.deploy(random_subset("python", 4, 1));
  ASSERT_THAT(sim.running(), SizeIs(1));
  sim.kill_process(*sim.running().begin());
  EXPECT_THAT(sim.error(deployed), HasSubstr("is lost"));
}

// Changes that fail.

class Changing : public ServingCluster {
 protected:
  Changing() {
    const OperationId deployed = sim.deploy(random_subset("python", 4, 1));
    sim.finish(deployed);
    sim.finish(sim.undeploy(""));
    EXPECT_THAT(sim.running(), SizeIs(1));
    before = *sim.state.published();
  }
  void expect_as_before() {
    sim.advance(2s);
    EXPECT_EQ(sim.state.published()->deployments, before.deployments);
    EXPECT_EQ(sim.state.published()->placement.owners, before.placement.owners);
    EXPECT_EQ(sim.state.published()->workers, before.workers)
        << "a worker that serves must not be restarted";
    EXPECT_THAT(sim.running(), SizeIs(1));
    EXPECT_EQ(sim.experts_resident(), 12u) << "extra experts must be dropped";
    EXPECT_TRUE(sim.status().ready);
  }
  EpochView before;
};

TEST_F(Changing, LoadFailureRollsBack) {
  sim.load_error = Error{ErrorCode::kNotFound, "model.safetensors: no such file"};
  const OperationId deployed = sim.deploy(random_subset("german", 8, 2));
  sim.finish(deployed);
  EXPECT_EQ(sim.results.at(deployed)->code, ErrorCode::kNotFound);
  EXPECT_THAT(sim.error(deployed), HasSubstr("model.safetensors: no such file"));
  sim.load_error.reset();
  expect_as_before();
  const OperationId again = sim.deploy(random_subset("german", 8, 2));
  sim.finish(again);
  EXPECT_TRUE(sim.succeeded(again)) << sim.error(again);
}

TEST_F(Changing, TimeOutWhileLoadingRollsBack) {
  sim.freeze_new = true;  // the workers that it needs more never connect
  const OperationId deployed = sim.deploy(random_subset("german", 8, 2));
  sim.advance(115s);
  EXPECT_FALSE(sim.done(deployed));
  sim.finish(deployed, 10s);
  ASSERT_TRUE(sim.results.at(deployed));
  EXPECT_EQ(sim.results.at(deployed)->code, ErrorCode::kDeadlineExceeded);
  EXPECT_THAT(sim.error(deployed),
              testing::AllOf(HasSubstr("not done within 120 s"), HasSubstr("to connect")));
  for (auto& [id, process] : sim.processes) process.frozen = false;
  expect_as_before();
}

TEST_F(Changing, TimeOutWhileARouterDoesNotSwitchRollsBack) {
  sim.routers[router].confirms = false;
  const OperationId deployed = sim.deploy(random_subset("german", 8, 2));
  sim.finish(deployed, 130s);
  EXPECT_THAT(sim.error(deployed), HasSubstr("router 0 to switch"));
  sim.routers[router].confirms = true;
  expect_as_before();
  EXPECT_EQ(sim.view(router).deployments, before.deployments);
}

TEST_F(ServingCluster, WhatARollBackNeedsStaysWhileANewRouterHesitates) {
  sim.finish(sim.deploy(random_subset("python", 4, 1)));
  sim.routers[router].running = {{"", 1}};
  const OperationId undeployed = sim.undeploy("");
  sim.advance(1s);
  sim.freeze_new = true;
  sim.routers[router].running.clear();
  sim.heartbeat_router(router);
  // A router that joins now knows only the epoch without the full model, and never confirms it.
  while (sim.state.published()->deployments.size() == 2) ASSERT_TRUE(sim.deliver_one(router));
  const int hesitant = sim.add_router();
  sim.routers[hesitant].confirms = false;
  sim.finish(undeployed, 130s);
  EXPECT_THAT(sim.error(undeployed), HasSubstr("router 1 to switch"));
  EXPECT_THAT(sim.state.published()->deployments, SizeIs(2));
  EXPECT_THAT(sim.state.published()->workers, SizeIs(4))
      << "its experts were dropped before it was sure";
}

TEST_F(Changing, WorkerLostWhileItLoadsIsAwaited) {
  const OperationId deployed = sim.deploy(random_subset("german", 8, 2));
  ASSERT_GT(sim.running().size(), 1u);
  sim.kill_process(*sim.running().rbegin());
  EXPECT_FALSE(sim.done(deployed));
  sim.finish(deployed);
  EXPECT_TRUE(sim.succeeded(deployed)) << sim.error(deployed);
}

// Order, refusals, the end.

TEST_F(ServingCluster, OperationsRunOneAfterAnotherInOrder) {
  const OperationId first = sim.deploy(random_subset("a", 4, 1));
  const OperationId second = sim.undeploy("a");
  const OperationId third = sim.deploy(random_subset("a", 4, 3));
  EXPECT_EQ(sim.state.operation(second)->state, OperationState::kQueued);
  sim.finish(third);
  for (OperationId each : {first, second, third})
    EXPECT_TRUE(sim.succeeded(each)) << sim.error(each);
  EXPECT_EQ(sim.state.operation(first)->state, OperationState::kSucceeded);
  sim.run();
  EXPECT_EQ(sim.view(router).deployments.back(), random_subset("a", 4, 3));
}

TEST_F(ServingCluster, TheQueueIsBounded) {
  sim.routers[router].confirms = false;  // the first one does not end
  std::vector<OperationId> all;
  for (int i = 0; i < 20; ++i)
    all.push_back(sim.deploy(random_subset(fmt::format("d{}", i), 4, 1)));
  EXPECT_FALSE(sim.done(all[16]));
  EXPECT_EQ(sim.results.at(all[17])->code, ErrorCode::kResourceExhausted);
  sim.routers[router].confirms = true;
  sim.finish(all[16]);
  EXPECT_TRUE(sim.succeeded(all[16]));
}

TEST_F(ServingCluster, RefusesStrangers) {
  proto::Hello hello = sim.hello(proto::Role::kRouter, 9, 1);
  hello.token = "guess";
  EXPECT_THAT(sim.knock(hello), HasSubstr("MOIETY_TOKEN"));
  hello = sim.hello(proto::Role::kRouter, 9, 1);
  hello.fingerprint = "fingerprint-b";
  EXPECT_THAT(sim.knock(hello),
              testing::AllOf(HasSubstr("fingerprint-a"), HasSubstr("fingerprint-b")));
  EXPECT_THAT(sim.knock(sim.hello(proto::Role::kRouter, 0, 2)), HasSubstr("already connected"));
  EXPECT_THAT(sim.knock(sim.hello(proto::Role::kWorker, 0, 99)), HasSubstr("already connected"));
  EXPECT_THAT(sim.knock(sim.hello(proto::Role::kWorker, 4, 1)), HasSubstr("--workers 4"));
  EXPECT_THAT(sim.knock(sim.hello(proto::Role::kAdmin, 0, 1)), HasSubstr("HTTP"));
  EXPECT_EQ(sim.knock(sim.hello(proto::Role::kRouter, 9, 1)), "");
  sim.advance(1s);
  EXPECT_EQ(sim.status().worker_losses, 0u);
}

TEST_F(ServingCluster, RefusesAReplacedWorkerThatComesBack) {
  const std::uint64_t old = sim.processes.at(WorkerId{1}).incarnation;
  sim.crash = "exit status 1";
  sim.kill_process(WorkerId{1});
  EXPECT_THAT(sim.knock(sim.hello(proto::Role::kWorker, 1, old)), HasSubstr("not expected"));
}

TEST_F(ServingCluster, RoutersWithoutAnIdGetOneEach) {
  proto::Hello hello = sim.hello(proto::Role::kRouter, 0, 5);
  hello.id.reset();
  hello.pid = 77;
  EXPECT_EQ(sim.knock(hello), "");
  hello.pid = 78;
  EXPECT_EQ(sim.knock(hello), "");
  EXPECT_THAT(sim.status().routers, SizeIs(3));
  EXPECT_EQ(sim.knock(hello), "");  // the same process again: its old connection is closed
  EXPECT_THAT(sim.status().routers, SizeIs(3));
  hello.http_address = "10.0.0.1:8000";  // for people alone
  EXPECT_EQ(sim.knock(hello), "");
  EXPECT_THAT(sim.status().routers, SizeIs(3));
}

TEST_F(ServingCluster, RoutersOfTwoContainersAreTwo) {
  // Process 1 in each of them, and nobody knows the address that leads to it.
  proto::Hello one = sim.hello(proto::Role::kRouter, 0, 5);
  one.id.reset();
  one.pid = 1;
  one.http_address = "0.0.0.0:8000";
  proto::Hello other = one;
  other.incarnation = 6;
  EXPECT_EQ(sim.knock(one), "");
  EXPECT_EQ(sim.knock(other), "");
  EXPECT_THAT(sim.status().routers, SizeIs(3));
  // With one id for both, the second is not let in.
  one.id = other.id = 7;
  EXPECT_EQ(sim.knock(one), "");
  EXPECT_THAT(sim.knock(other), HasSubstr("router 7 is already connected"));
  other.incarnation = 0;
  EXPECT_THAT(sim.knock(other), HasSubstr("incarnation above 0"));
}

TEST_F(ServingCluster, ShutdownLetsRoutersFinishThenStopsWorkers) {
  const OperationId deployed = sim.deploy(random_subset("python", 4, 1));
  sim.event(ShutdownRequest{"test"});
  EXPECT_EQ(sim.results.at(deployed)->code, ErrorCode::kCancelled);
  sim.advance(5s);
  EXPECT_TRUE(sim.routers[router].told_to_end);
  EXPECT_THAT(sim.running(), SizeIs(4)) << "stopped while a router may need them";
  EXPECT_FALSE(sim.exited);
  EXPECT_THAT(sim.knock(sim.hello(proto::Role::kRouter, 5, 1)), HasSubstr("shutting down"));
  EXPECT_EQ(sim.results.at(sim.deploy(random_subset("x", 4, 1)))->code, ErrorCode::kUnavailable);
  sim.close_router(router);
  sim.advance(200ms);
  EXPECT_TRUE(sim.exited);
  EXPECT_THAT(sim.running(), IsEmpty());
}

TEST(Shutdown, SaysTrulyWhatBecameOfTheChange) {
  ClusterConfig config = test_config();
  config.move_headroom = 1;
  Simulation sim(config);
  sim.finish(sim.start({full_deployment()}));
  sim.routers[sim.add_router()].confirms = false;
  const OperationId published = sim.deploy(random_subset("python", 4, 1));
  sim.run();
  ASSERT_THAT(sim.state.published()->deployments, SizeIs(2));
  const OperationId waits = sim.undeploy("python");
  sim.event(ShutdownRequest{"test"});
  sim.run();
  EXPECT_TRUE(sim.succeeded(published)) << sim.error(published);
  EXPECT_THAT(sim.error(waits), HasSubstr("shutting down"));
  EXPECT_TRUE(sim.state.operation(waits)->rolled_back);
  EXPECT_THAT(sim.disk->published->deployments, SizeIs(2));
}

TEST_F(ServingCluster, AShutdownAmidADrainOfRequestsTakesItBack) {
  sim.routers[router].running = {{"", 2}};
  sim.advance(400ms);
  const OperationId undeployed = sim.undeploy("");
  sim.advance(1s);
  ASSERT_TRUE(sim.state.published()->deployments.at(0).draining);
  sim.event(ShutdownRequest{"test"});
  sim.run();
  EXPECT_TRUE(sim.state.operation(undeployed)->rolled_back);
  EXPECT_FALSE(sim.disk->published->deployments.at(0).draining);
}

TEST_F(ServingCluster, ShutdownIsBounded) {
  sim.event(ShutdownRequest{"test"});
  sim.advance(16s);
  EXPECT_TRUE(sim.exited);
  EXPECT_THAT(sim.running(), IsEmpty());
}

TEST_F(ServingCluster, ASecondShutdownDoesNotWaitForRouters) {
  sim.event(ShutdownRequest{"test"});
  sim.event(ShutdownRequest{"again"});
  sim.advance(100ms);
  EXPECT_TRUE(sim.exited);
}

TEST(Policies, ByIdAndRoundRobinUseEveryWorker) {
  for (const auto policy :
       {planner::PlacementPolicy::kById, planner::PlacementPolicy::kRoundRobin}) {
    ClusterConfig config = test_config();
    config.policy = policy;
    Simulation sim(config);
    const OperationId started = sim.start({random_subset("python", 8, 4)});
    sim.finish(started);
    EXPECT_TRUE(sim.succeeded(started)) << sim.error(started);
    EXPECT_GT(sim.running().size(), 2u) << planner::policy_name(policy);
  }
}

}  // namespace
}  // namespace moiety::coordinator
