#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fabric/lane.h"
#include "tests/fabric/echo.h"

// What every backend must do, written once. A backend is a class with
//   std::unique_ptr<WorkerPort> port(const LaneIdentity&)
//   std::unique_ptr<RouterLane> lane(const LaneIdentity&)
//   std::string dead_address()      where nobody listens
namespace moiety::fabric {

template <class Backend>
class LaneSuite : public ::testing::Test {
 protected:
  std::unique_ptr<EchoWorker> echo(std::uint64_t id, std::uint64_t incarnation = 1) {
    return std::make_unique<EchoWorker>(backend_.port(worker_identity(id, incarnation)), id);
  }

  static void expect_connected(RouterLane& lane,
                               const EchoWorker& worker,
                               std::uint64_t id,
                               std::uint64_t incarnation = 1) {
    const auto result = connect_now(lane, worker.address(), id, incarnation, generous());
    ASSERT_TRUE(result) << result.error().message;
    ASSERT_TRUE(lane.connected(id));
  }

  Backend backend_;
};

TYPED_TEST_SUITE_P(LaneSuite);

TYPED_TEST_P(LaneSuite, EchoesEverySize) {
  const auto worker = this->echo(3);
  const auto lane = this->backend_.lane(router_identity(5));
  this->expect_connected(*lane, *worker, 3);
  std::uint64_t step = 0;
  std::uint64_t bytes = 0;
  for (const std::size_t size : {0, 1, 7, 4096, 131071, 131072, 131073, 4 << 20, 5 << 20}) {
    SCOPED_TRACE(size);
    const Header sent = dispatch_header(5, ++step);
    const auto payload = payload_of(5, step, size);
    bytes += size;
    ASSERT_TRUE(lane->send(3, sent, payload));
    const Event event = lane->wait(generous());
    ASSERT_EQ(event.type, Event::Type::kMessage);
    EXPECT_EQ(event.peer, 3u);
    EXPECT_TRUE(event.header.answers(sent));
    EXPECT_EQ(event.payload, payload);
  }
  EXPECT_EQ(lane->bytes_sent(), bytes);
  EXPECT_EQ(lane->bytes_received(), bytes);
}

TYPED_TEST_P(LaneSuite, HeaderArrivesAsItWasSent) {
  const auto port = this->backend_.port(worker_identity(3));
  const auto lane = this->backend_.lane(router_identity(5));
  Event arrived;
  std::atomic<bool> done = false;
  std::thread worker([&] {
    arrived = port->wait(generous());
    done = true;
  });
  const auto connected = connect_now(*lane, port->address(), 3, 1, generous());
  Header header;
  header.kind = Kind::kError;
  header.epoch = 0x0102'0304'0506'0708;
  header.step = 0x1112'1314'1516'1718;
  header.attempt = 0x2122'2324;
  header.layer = 0x3132'3334;
  header.sender = 0x4142'4344'4546'4748;
  header.incarnation = 0x5152'5354'5556'5758;
  header.received_ns = 0x6162'6364'6566'6768;
  header.started_ns = 0x7172'7374'7576'7778;
  header.finished_ns = 0x8182'8384'8586'8788;
  header.sent_ns = 0x9192'9394'9596'9798;
  const bool sent = connected && lane->send(3, header, {});
  if (!sent) port->interrupt();
  while (!done) (void)lane->wait(in(milliseconds(1)));
  worker.join();
  ASSERT_TRUE(connected) << connected.error().message;
  ASSERT_TRUE(sent);
  ASSERT_EQ(arrived.type, Event::Type::kMessage);
  EXPECT_EQ(std::memcmp(&arrived.header, &header, sizeof header), 0);
  EXPECT_TRUE(arrived.payload.empty());
}

// Two routers, each with a lane to every worker, from two threads; every reply must be the right
// one, in order.
TYPED_TEST_P(LaneSuite, ManyWorkersAndTwoRoutersKeepOrder) {
  constexpr std::uint64_t kWorkers = 5;
  constexpr std::uint64_t kMessages = 60;
  constexpr std::size_t kSizes[] = {0, 100, 5000, 140'000, 17};
  std::vector<std::unique_ptr<EchoWorker>> workers;
  for (std::uint64_t id = 0; id < kWorkers; ++id) workers.push_back(this->echo(id));

  const auto route = [&](std::uint64_t router, std::string* failure) {
    const auto lane = this->backend_.lane(router_identity(router));
    for (std::uint64_t id = 0; id < kWorkers; ++id) {
      if (const auto result = connect_now(*lane, workers[id]->address(), id, 1, generous());
          !result) {
        *failure = result.error().message;
        return;
      }
    }
    for (std::uint64_t step = 1; step <= kMessages; ++step) {
      for (std::uint64_t id = 0; id < kWorkers; ++id) {
        auto payload = payload_of(router * 100 + id, step, kSizes[step % std::size(kSizes)]);
        if (!lane->send(id, dispatch_header(router, step), std::move(payload))) {
          *failure = "a send failed";
          return;
        }
      }
    }
    std::map<std::uint64_t, std::uint64_t> next_step;
    for (std::uint64_t reply = 0; reply < kMessages * kWorkers; ++reply) {
      const Event event = lane->wait(generous());
      const std::uint64_t step = ++next_step[event.peer];
      if (event.type != Event::Type::kMessage || event.header.step != step ||
          event.header.sender != event.peer ||
          event.payload !=
              payload_of(router * 100 + event.peer, step, kSizes[step % std::size(kSizes)])) {
        *failure = "reply " + std::to_string(reply) + " of worker " + std::to_string(event.peer) +
                   " is wrong";
        return;
      }
    }
  };
  std::string failures[2];
  std::thread other([&] { route(2, &failures[1]); });
  route(1, &failures[0]);
  other.join();
  EXPECT_EQ(failures[0], "");
  EXPECT_EQ(failures[1], "");
}

// A rendezvous message takes longer than the short one behind it, which must not overtake it.
TYPED_TEST_P(LaneSuite, ShortMessageDoesNotOvertakeLongOne) {
  const auto worker = this->echo(3);
  const auto lane = this->backend_.lane(router_identity(5));
  this->expect_connected(*lane, *worker, 3);
  constexpr std::size_t kSizes[] = {9 << 20, 1, 300'000, 5 << 20, 0, 64};
  std::uint64_t step = 0;
  for (const std::size_t size : kSizes) {
    ++step;
    ASSERT_TRUE(lane->send(3, dispatch_header(5, step), payload_of(5, step, size)));
  }
  step = 0;
  for (const std::size_t size : kSizes) {
    const Event event = lane->wait(generous());
    ASSERT_EQ(event.type, Event::Type::kMessage);
    EXPECT_EQ(event.header.step, ++step);
    EXPECT_EQ(event.payload, payload_of(5, step, size));
  }
}

TYPED_TEST_P(LaneSuite, HelloRefusals) {
  const auto worker = this->echo(3, 8);
  const auto error_of = [&](const LaneIdentity& identity, std::uint64_t id,
                            std::uint64_t incarnation) {
    const auto lane = this->backend_.lane(identity);
    const auto result = connect_now(*lane, worker->address(), id, incarnation, generous());
    EXPECT_FALSE(result);
    EXPECT_FALSE(lane->connected(id));
    return result ? ErrorCode::kInternal : result.error().code;
  };
  EXPECT_EQ(error_of({5, 0, "another secret"}, 3, 8), ErrorCode::kInvalidArgument);
  EXPECT_EQ(error_of({5, 0, ""}, 3, 8), ErrorCode::kInvalidArgument);
  EXPECT_EQ(error_of(router_identity(5), 3, 7), ErrorCode::kLeaseLost);
  EXPECT_EQ(error_of(router_identity(5), 4, 8), ErrorCode::kLeaseLost);
  // The port is none the worse for it.
  const auto lane = this->backend_.lane(router_identity(5));
  this->expect_connected(*lane, *worker, 3, 8);
  ASSERT_TRUE(lane->send(3, dispatch_header(5, 1, 8), payload_of(5, 1, 10)));
  EXPECT_EQ(lane->wait(generous()).type, Event::Type::kMessage);
  worker->stop();
  EXPECT_TRUE(worker->lost_lanes().empty()) << "a refused router is not a lane";
}

TYPED_TEST_P(LaneSuite, ConnectFailsWhereNobodyListens) {
  const auto lane = this->backend_.lane(router_identity(5));
  const auto result = connect_now(*lane, this->backend_.dead_address(), 3, 1, generous());
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::kUnavailable);
  EXPECT_FALSE(lane->connected(3));
  const auto sent = lane->send(3, dispatch_header(5, 1), {});
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().code, ErrorCode::kWorkerLost);
}

// A port that nobody waits on does not answer the hello: connect() ends at its deadline. What other
// workers send meanwhile is not lost.
TYPED_TEST_P(LaneSuite, ConnectHonoursItsDeadlineAndKeepsOtherTraffic) {
  const auto worker = this->echo(3);
  const auto silent = this->backend_.port(worker_identity(4));
  const auto lane = this->backend_.lane(router_identity(5));
  this->expect_connected(*lane, *worker, 3);
  const auto payload = payload_of(5, 1, 200'000);
  ASSERT_TRUE(lane->send(3, dispatch_header(5, 1), payload));
  const auto start = Clock::now();
  lane->connect(silent->address(), 4, 1, start + milliseconds(150));
  EXPECT_LT(Clock::now() - start, milliseconds(100)) << "connect() itself waits for nothing";
  EXPECT_FALSE(lane->connected(4));
  EXPECT_FALSE(lane->send(4, dispatch_header(5, 1), {}));
  const Event event = lane->wait(generous());
  ASSERT_EQ(event.type, Event::Type::kMessage);
  EXPECT_EQ(event.payload, payload);
  const Event failed = lane->wait(generous());
  const auto took = Clock::now() - start;
  ASSERT_EQ(failed.type, Event::Type::kPeerLost);
  EXPECT_EQ(failed.peer, 4u);
  EXPECT_EQ(failed.error.code, ErrorCode::kUnavailable);
  EXPECT_NE(failed.error.message.find("worker 4 at "), std::string::npos) << failed.error.message;
  EXPECT_GE(took, milliseconds(150));
  EXPECT_LT(took, milliseconds(2000));
  EXPECT_EQ(lane->wait(in(milliseconds(20))).type, Event::Type::kTimeout) << "told twice";
}

// The port wakes up after the router has given up: no event, and the next connect() is a new one.
TYPED_TEST_P(LaneSuite, LateAnswerToAnAbandonedConnect) {
  for (const bool by_deadline : {true, false}) {
    SCOPED_TRACE(by_deadline);
    auto port = this->backend_.port(worker_identity(4));
    const auto lane = this->backend_.lane(router_identity(5));
    lane->connect(port->address(), 4, 1, by_deadline ? in(milliseconds(30)) : generous());
    if (by_deadline) {
      EXPECT_EQ(lane->wait(generous()).type, Event::Type::kPeerLost);
    } else {
      EXPECT_EQ(lane->wait(in(milliseconds(30))).type, Event::Type::kTimeout);
      lane->disconnect(4);
    }
    EchoWorker worker(std::move(port), 4);
    EXPECT_EQ(lane->wait(in(milliseconds(50))).type, Event::Type::kTimeout);
    EXPECT_FALSE(lane->connected(4));
    this->expect_connected(*lane, worker, 4);
    ASSERT_TRUE(lane->send(4, dispatch_header(5, 2), payload_of(5, 2, 64)));
    EXPECT_EQ(lane->wait(generous()).payload, payload_of(5, 2, 64));
  }
}

// Connects to several workers progress side by side, and a deadline that is over still takes an
// answer that is there or tells the failure.
TYPED_TEST_P(LaneSuite, ConnectsSideBySide) {
  std::vector<std::unique_ptr<EchoWorker>> workers;
  for (std::uint64_t id = 0; id < 4; ++id) workers.push_back(this->echo(id));
  const auto silent = this->backend_.port(worker_identity(9));
  const auto lane = this->backend_.lane(router_identity(5));
  lane->connect(silent->address(), 9, 1, generous());
  for (std::uint64_t id = 0; id < 4; ++id)
    lane->connect(workers[id]->address(), id, id == 2 ? 77 : 1, generous());
  std::map<std::uint64_t, Event::Type> outcomes;
  for (int i = 0; i < 4; ++i) {
    const Event event = lane->wait(generous());
    EXPECT_TRUE(outcomes.emplace(event.peer, event.type).second);
    EXPECT_EQ(event.error.code, event.peer == 2 ? ErrorCode::kLeaseLost : Error{}.code);
  }
  using enum Event::Type;
  const std::map<std::uint64_t, Event::Type> expected = {
      {0, kConnected}, {1, kConnected}, {2, kPeerLost}, {3, kConnected}};
  EXPECT_EQ(outcomes, expected);
  lane->connect(silent->address(), 9, 1, in(milliseconds(-1)));
  const Event late = lane->wait(generous());
  EXPECT_EQ(late.type, kPeerLost);
  EXPECT_EQ(late.peer, 9u);
}

TYPED_TEST_P(LaneSuite, WaitHonoursItsDeadline) {
  const auto worker = this->echo(3);
  const auto port = this->backend_.port(worker_identity(4));
  const auto lane = this->backend_.lane(router_identity(5));
  this->expect_connected(*lane, *worker, 3);
  for (const auto& wait :
       {std::function<Event(Deadline)>([&](Deadline at) { return lane->wait(at); }),
        std::function<Event(Deadline)>([&](Deadline at) { return port->wait(at); })}) {
    for (const auto duration :
         {milliseconds(-5), milliseconds(0), milliseconds(1), milliseconds(60)}) {
      const auto start = Clock::now();
      EXPECT_EQ(wait(start + duration).type, Event::Type::kTimeout);
      const auto took = Clock::now() - start;
      EXPECT_GE(took, duration);
      EXPECT_LT(took, duration + milliseconds(1000));
    }
  }
}

TYPED_TEST_P(LaneSuite, InterruptFromAnotherThread) {
  const auto worker = this->echo(3);
  const auto port = this->backend_.port(worker_identity(4));
  const auto lane = this->backend_.lane(router_identity(5));
  this->expect_connected(*lane, *worker, 3);
  // During a wait: the other thread rings at some moment before, in, or after the spin.
  for (int round = 0; round < 20; ++round) {
    std::thread ringer([&] {
      const auto until = Clock::now() + std::chrono::microseconds(50 * round);
      while (Clock::now() < until) std::this_thread::yield();
      lane->interrupt();
      port->interrupt();
    });
    EXPECT_EQ(lane->wait(generous()).type, Event::Type::kInterrupted);
    EXPECT_EQ(port->wait(generous()).type, Event::Type::kInterrupted);
    ringer.join();
  }
  // Before a wait: the next one returns, once.
  lane->interrupt();
  EXPECT_EQ(lane->wait(generous()).type, Event::Type::kInterrupted);
  EXPECT_EQ(lane->wait(in(milliseconds(5))).type, Event::Type::kTimeout);
  // An interrupt does not end a connect().
  lane->connect(worker->address(), 3, 1, generous());
  lane->interrupt();
  std::map<Event::Type, int> events;
  for (int i = 0; i < 2; ++i) ++events[lane->wait(generous()).type];
  EXPECT_EQ(events[Event::Type::kInterrupted], 1);
  EXPECT_EQ(events[Event::Type::kConnected], 1);
}

TYPED_TEST_P(LaneSuite, DisconnectDropsLateMessages) {
  const auto late = this->echo(3);
  const auto other = this->echo(4);
  const auto lane = this->backend_.lane(router_identity(5));
  this->expect_connected(*lane, *late, 3);
  this->expect_connected(*lane, *other, 4);
  for (std::uint64_t step = 1; step <= 8; ++step) {
    ASSERT_TRUE(lane->send(3, dispatch_header(5, step), payload_of(3, step, 50'000)));
  }
  ASSERT_EQ(lane->wait(generous()).peer, 3u);
  // Other messages arrive and queue; none of them may come out.
  const auto arrived = in(milliseconds(150));
  while (Clock::now() < arrived) std::this_thread::yield();
  lane->disconnect(3);
  EXPECT_FALSE(lane->connected(3));
  EXPECT_FALSE(lane->send(3, dispatch_header(5, 9), {}));
  ASSERT_TRUE(lane->send(4, dispatch_header(5, 10), payload_of(4, 10, 60'000)));
  const Event event = lane->wait(generous());
  ASSERT_EQ(event.type, Event::Type::kMessage);
  EXPECT_EQ(event.peer, 4u);
  EXPECT_EQ(lane->wait(in(milliseconds(50))).type, Event::Type::kTimeout);
  lane->disconnect(3);  // twice is harmless
}

TYPED_TEST_P(LaneSuite, LossIsToldExactlyOnceAndOthersGoOn) {
  const auto leaving = this->echo(3);
  const auto staying = this->echo(4);
  const auto lane = this->backend_.lane(router_identity(5));
  this->expect_connected(*lane, *leaving, 3);
  this->expect_connected(*lane, *staying, 4);
  leaving->close();
  const Event lost = lane->wait(generous());
  ASSERT_EQ(lost.type, Event::Type::kPeerLost);
  EXPECT_EQ(lost.peer, 3u);
  EXPECT_EQ(lost.error.code, ErrorCode::kWorkerLost);
  EXPECT_FALSE(lost.error.message.empty());
  EXPECT_FALSE(lane->connected(3));
  const auto sent = lane->send(3, dispatch_header(5, 1), payload_of(5, 1, 100));
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().code, ErrorCode::kWorkerLost);
  ASSERT_TRUE(lane->send(4, dispatch_header(5, 2), payload_of(5, 2, 100)));
  const Event event = lane->wait(generous());
  EXPECT_EQ(event.type, Event::Type::kMessage);
  EXPECT_EQ(event.peer, 4u);
  EXPECT_EQ(lane->wait(in(milliseconds(50))).type, Event::Type::kTimeout);
}

TYPED_TEST_P(LaneSuite, ReconnectsToANewIncarnation) {
  const auto lane = this->backend_.lane(router_identity(5));
  for (std::uint64_t incarnation = 1; incarnation <= 4; ++incarnation) {
    SCOPED_TRACE(incarnation);
    const auto worker = this->echo(3, incarnation);
    this->expect_connected(*lane, *worker, 3, incarnation);
    const Header header = dispatch_header(5, incarnation, incarnation);
    ASSERT_TRUE(lane->send(3, header, payload_of(3, incarnation, 1000)));
    const Event event = lane->wait(generous());
    ASSERT_EQ(event.type, Event::Type::kMessage);
    EXPECT_TRUE(event.header.answers(header));
    worker->close();
    if (incarnation % 2 == 0) {
      // The loss is noticed by the next connect at the latest, and is not taken for the new
      // connection's.
      continue;
    }
    EXPECT_EQ(lane->wait(generous()).type, Event::Type::kPeerLost);
  }
}

// connect() to a connected worker replaces the connection.
TYPED_TEST_P(LaneSuite, ConnectReplacesAConnection) {
  const auto old_worker = this->echo(3, 1);
  const auto new_worker = this->echo(3, 2);
  const auto lane = this->backend_.lane(router_identity(5));
  this->expect_connected(*lane, *old_worker, 3, 1);
  this->expect_connected(*lane, *new_worker, 3, 2);
  ASSERT_TRUE(lane->send(3, dispatch_header(5, 1, 2), payload_of(5, 1, 10)));
  EXPECT_EQ(lane->wait(generous()).type, Event::Type::kMessage);
  old_worker->close();
  EXPECT_EQ(lane->wait(in(milliseconds(50))).type, Event::Type::kTimeout);
  EXPECT_TRUE(lane->connected(3));
}

TYPED_TEST_P(LaneSuite, PortLearnsThatARouterLeft) {
  const auto port = this->backend_.port(worker_identity(3));
  std::uint64_t lane_number = 0;
  Event last;
  Result<void> late_reply;
  std::thread worker([&] {
    const Event first = port->wait(generous());
    lane_number = first.peer;
    const bool sent = port->send(first.peer, first.header, {}).has_value();
    last = sent ? port->wait(generous()) : Event{};
    late_reply = port->send(first.peer, first.header, {});
  });
  auto lane = this->backend_.lane(router_identity(5));
  const auto connected = connect_now(*lane, port->address(), 3, 1, generous());
  const bool sent = connected && lane->send(3, dispatch_header(5, 1), {});
  const Event reply = sent ? lane->wait(generous()) : Event{};
  lane.reset();
  if (!sent) port->interrupt();
  worker.join();
  ASSERT_TRUE(connected) << connected.error().message;
  ASSERT_EQ(reply.type, Event::Type::kMessage);
  EXPECT_EQ(last.type, Event::Type::kPeerLost);
  EXPECT_EQ(last.peer, lane_number);
  ASSERT_FALSE(late_reply);
  EXPECT_EQ(late_reply.error().code, ErrorCode::kUnavailable);
}

REGISTER_TYPED_TEST_SUITE_P(LaneSuite,
                            EchoesEverySize,
                            HeaderArrivesAsItWasSent,
                            ManyWorkersAndTwoRoutersKeepOrder,
                            ShortMessageDoesNotOvertakeLongOne,
                            HelloRefusals,
                            ConnectFailsWhereNobodyListens,
                            ConnectHonoursItsDeadlineAndKeepsOtherTraffic,
                            LateAnswerToAnAbandonedConnect,
                            ConnectsSideBySide,
                            WaitHonoursItsDeadline,
                            InterruptFromAnotherThread,
                            DisconnectDropsLateMessages,
                            LossIsToldExactlyOnceAndOthersGoOn,
                            ReconnectsToANewIncarnation,
                            ConnectReplacesAConnection,
                            PortLearnsThatARouterLeft);

}  // namespace moiety::fabric
