#include "fabric/loopback/loopback.h"

#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <vector>

#include "tests/fabric/lane_suite.h"

namespace moiety::fabric {
namespace {

class LoopbackBackend {
 public:
  std::unique_ptr<WorkerPort> port(const LaneIdentity& identity) {
    return network_.make_port(identity);
  }
  std::unique_ptr<RouterLane> lane(const LaneIdentity& identity) {
    return network_.make_router_lane(identity);
  }
  std::string dead_address() { return "loop:999"; }

 private:
  LoopbackNetwork network_;
};

INSTANTIATE_TYPED_TEST_SUITE_P(Loopback, LaneSuite, LoopbackBackend);

constexpr std::uint64_t kRouter = 5;
constexpr std::uint64_t kWorker = 3;

/// A router and an echoing worker that are connected.
struct Pairing {
  explicit Pairing(std::uint64_t seed = 1)
      : network(seed),
        worker(network.make_port(worker_identity(kWorker)), kWorker),
        lane(network.make_router_lane(router_identity(kRouter))) {
    const auto result = connect_now(*lane, worker.address(), kWorker, 1, generous());
    EXPECT_TRUE(result) << result.error().message;
  }
  void send(std::uint64_t step) {
    EXPECT_TRUE(lane->send(kWorker, dispatch_header(kRouter, step), payload_of(kRouter, step, 32)));
  }
  /// The step of the next message; 0 when none comes in 50 ms.
  std::uint64_t next_step() { return step_of(lane->wait(in(milliseconds(50)))); }
  /// The same for a message that must come.
  std::uint64_t expect_step() { return step_of(lane->wait(generous())); }
  static std::uint64_t step_of(const Event& event) {
    return event.type == Event::Type::kMessage ? event.header.step : 0;
  }

  LoopbackNetwork network;
  EchoWorker worker;
  std::unique_ptr<RouterLane> lane;
};

TEST(LoopbackFaults, DelayHoldsMessagesBackAndKeepsOrder) {
  Pairing pairing;
  pairing.network.set_delay(kRouter, kWorker, milliseconds(40));
  const auto start = Clock::now();
  pairing.send(1);
  pairing.network.set_delay(kRouter, kWorker, milliseconds(0));
  pairing.send(2);
  EXPECT_EQ(pairing.expect_step(), 1u);
  EXPECT_GE(Clock::now() - start, milliseconds(40));
  EXPECT_EQ(pairing.expect_step(), 2u);
}

TEST(LoopbackFaults, DelayedHelloMissesAShortDeadline) {
  Pairing pairing;
  pairing.network.set_delay(kRouter, kWorker, milliseconds(200));
  const auto result =
      connect_now(*pairing.lane, pairing.worker.address(), kWorker, 1, in(milliseconds(20)));
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::kUnavailable);
}

TEST(LoopbackFaults, DropNext) {
  Pairing pairing;
  pairing.network.drop_next(kRouter, kWorker, Direction::kToWorker, 2);
  for (std::uint64_t step = 1; step <= 3; ++step) pairing.send(step);
  EXPECT_EQ(pairing.expect_step(), 3u);
  pairing.network.drop_next(kRouter, kWorker, Direction::kToRouter, 1);
  pairing.send(4);
  pairing.send(5);
  EXPECT_EQ(pairing.expect_step(), 5u);
  EXPECT_EQ(pairing.next_step(), 0u);
}

std::set<std::uint64_t> survivors(std::uint64_t seed) {
  Pairing pairing(seed);
  pairing.network.set_drop_probability(kRouter, kWorker, Direction::kToWorker, 0.3);
  for (std::uint64_t step = 1; step <= 200; ++step) pairing.send(step);
  pairing.network.set_drop_probability(kRouter, kWorker, Direction::kToWorker, 0);
  pairing.send(1000);
  std::set<std::uint64_t> steps;
  for (std::uint64_t step = pairing.expect_step(); step != 1000 && step != 0;
       step = pairing.expect_step()) {
    steps.insert(step);
  }
  return steps;
}

TEST(LoopbackFaults, DropProbabilityIsAFunctionOfTheSeed) {
  const auto first = survivors(42);
  EXPECT_GT(first.size(), 110u);
  EXPECT_LT(first.size(), 170u);
  EXPECT_EQ(first, survivors(42));
  EXPECT_NE(first, survivors(43));
}

TEST(LoopbackFaults, KilledWorkerIsLostOnceAndStaysDead) {
  Pairing pairing;
  pairing.send(1);
  EXPECT_EQ(pairing.expect_step(), 1u);
  pairing.network.kill(kWorker);
  const Event lost = pairing.lane->wait(generous());
  EXPECT_EQ(lost.type, Event::Type::kPeerLost);
  EXPECT_EQ(lost.peer, kWorker);
  EXPECT_FALSE(pairing.lane->connected(kWorker));
  EXPECT_EQ(pairing.lane->wait(in(milliseconds(30))).type, Event::Type::kTimeout);
  EXPECT_FALSE(connect_now(*pairing.lane, pairing.worker.address(), kWorker, 1, generous()));

  const EchoWorker restarted(pairing.network.make_port(worker_identity(kWorker, 2)), kWorker);
  ASSERT_TRUE(connect_now(*pairing.lane, restarted.address(), kWorker, 2, generous()));
  pairing.send(2);
  EXPECT_EQ(pairing.expect_step(), 2u);
}

TEST(LoopbackFaults, KilledPortHearsAndSaysNothing) {
  LoopbackNetwork network;
  const auto port = network.make_port(worker_identity(kWorker));
  network.kill(kWorker);
  EXPECT_EQ(port->wait(in(milliseconds(5))).type, Event::Type::kTimeout);
  EXPECT_FALSE(port->send(1, Header{}, {}));
  port->interrupt();
  EXPECT_EQ(port->wait(generous()).type, Event::Type::kInterrupted);
}

TEST(LoopbackFaults, AKilledRoutersLanesEndAndTheOthersStay) {
  Pairing pairing;
  const auto other = pairing.network.make_router_lane(router_identity(kRouter + 1));
  ASSERT_TRUE(connect_now(*other, pairing.worker.address(), kWorker, 1, generous()));
  pairing.send(1);
  EXPECT_EQ(pairing.expect_step(), 1u);
  pairing.network.kill_router(kRouter);
  EXPECT_EQ(pairing.lane->wait(generous()).type, Event::Type::kPeerLost);

  // Its successor hears nothing of what was said to it.
  const auto restarted = pairing.network.make_router_lane(router_identity(kRouter));
  ASSERT_TRUE(connect_now(*restarted, pairing.worker.address(), kWorker, 1, generous()));
  EXPECT_FALSE(pairing.network.replay(kRouter, kWorker, Direction::kToRouter, 0));
  ASSERT_TRUE(restarted->send(kWorker, dispatch_header(kRouter, 2), {}));
  EXPECT_EQ(Pairing::step_of(restarted->wait(generous())), 2u);

  ASSERT_TRUE(other->send(kWorker, dispatch_header(kRouter + 1, 3), {}));
  EXPECT_EQ(Pairing::step_of(other->wait(generous())), 3u);
}

TEST(LoopbackFaults, AWorkerHearsThatARouterWasKilledAndNothingMoreOfIt) {
  LoopbackNetwork network;
  const auto port = network.make_port(worker_identity(kWorker));
  const auto lane = network.make_router_lane(router_identity(kRouter));
  lane->connect(port->address(), kWorker, 1, generous());
  EXPECT_EQ(port->wait(in(milliseconds(5))).type, Event::Type::kTimeout);  // greets
  ASSERT_EQ(lane->wait(generous()).type, Event::Type::kConnected);
  network.kill_router(kRouter);
  (void)lane->send(kWorker, dispatch_header(kRouter, 1), {});  // it does not know yet
  const Event lost = port->wait(generous());
  EXPECT_EQ(lost.type, Event::Type::kPeerLost);
  EXPECT_EQ(port->wait(in(milliseconds(5))).type, Event::Type::kTimeout);
  EXPECT_FALSE(port->send(lost.peer, dispatch_header(kRouter, 1), {}));
}

TEST(LoopbackFaults, PartitionIsSilentUntilItEnds) {
  Pairing pairing;
  pairing.network.set_partition(kRouter, kWorker, true);
  pairing.send(1);
  EXPECT_EQ(pairing.next_step(), 0u);
  EXPECT_TRUE(pairing.lane->connected(kWorker)) << "nobody can tell a partition from silence";
  pairing.network.set_partition(kRouter, kWorker, false);
  pairing.send(2);
  EXPECT_EQ(pairing.expect_step(), 2u);

  // A death behind a partition is news only after it.
  pairing.network.set_partition(kRouter, kWorker, true);
  pairing.network.kill(kWorker);
  EXPECT_EQ(pairing.lane->wait(in(milliseconds(30))).type, Event::Type::kTimeout);
  pairing.network.set_partition(kRouter, kWorker, false);
  EXPECT_EQ(pairing.lane->wait(generous()).type, Event::Type::kPeerLost);
}

TEST(LoopbackFaults, ConnectThroughAPartitionEndsAtItsDeadline) {
  LoopbackNetwork network;
  const EchoWorker worker(network.make_port(worker_identity(kWorker)), kWorker);
  const auto lane = network.make_router_lane(router_identity(kRouter));
  network.set_partition(kRouter, kWorker, true);
  const auto result = connect_now(*lane, worker.address(), kWorker, 1, in(milliseconds(30)));
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::kUnavailable);
  network.set_partition(kRouter, kWorker, false);
  EXPECT_TRUE(connect_now(*lane, worker.address(), kWorker, 1, generous()));
}

TEST(LoopbackFaults, FaultsOfOnePairLeaveOthersAlone) {
  Pairing pairing;
  const EchoWorker other(pairing.network.make_port(worker_identity(4)), 4);
  ASSERT_TRUE(connect_now(*pairing.lane, other.address(), 4, 1, generous()));
  pairing.network.set_partition(kRouter, kWorker, true);
  pairing.send(1);
  ASSERT_TRUE(pairing.lane->send(4, dispatch_header(kRouter, 2), {}));
  const Event event = pairing.lane->wait(generous());
  EXPECT_EQ(event.peer, 4u);
  EXPECT_EQ(event.header.step, 2u);
}

TEST(LoopbackFaults, ReplayedReplyDoesNotAnswerTheNextDispatch) {
  Pairing pairing;
  EXPECT_FALSE(pairing.network.replay(kRouter, kWorker, Direction::kToRouter, 0));
  for (std::uint64_t step = 1; step <= 2; ++step) {
    pairing.send(step);
    EXPECT_EQ(pairing.expect_step(), step);
  }
  ASSERT_TRUE(pairing.network.replay(kRouter, kWorker, Direction::kToRouter, 1));
  const Event old = pairing.lane->wait(generous());
  ASSERT_EQ(old.type, Event::Type::kMessage);
  EXPECT_EQ(old.header.step, 1u);
  EXPECT_EQ(old.payload, payload_of(kRouter, 1, 32));
  EXPECT_TRUE(old.header.answers(dispatch_header(kRouter, 1)));
  EXPECT_FALSE(old.header.answers(dispatch_header(kRouter, 3)));
  EXPECT_FALSE(pairing.network.replay(kRouter, kWorker, Direction::kToRouter, 2))
      << "only two were sent";
}

}  // namespace
}  // namespace moiety::fabric
