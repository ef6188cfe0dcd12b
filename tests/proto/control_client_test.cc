#include "proto/control_client.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>

namespace moiety::proto {
namespace {

using namespace std::chrono_literals;
using testing::AllOf;
using testing::HasSubstr;

constexpr auto kPatience = 10s;

/// Hands values from other threads to the test.
template <class T>
class Inbox {
 public:
  void put(T value) {
    const std::lock_guard lock(mutex_);
    values_.push_back(std::move(value));
    changed_.notify_all();
  }
  std::optional<T> take(Clock::duration patience = kPatience) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, patience, [&] { return !values_.empty(); })) return std::nullopt;
    T value = std::move(values_.front());
    values_.pop_front();
    return value;
  }
  bool empty() {
    const std::lock_guard lock(mutex_);
    return values_.empty();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<T> values_;
};

/// A coordinator that welcomes everybody, or refuses everybody with `refusal`.
class TestCoordinator {
 public:
  struct Beat {
    ConnectionId connection;
    std::uint64_t number;
  };

  explicit TestCoordinator(std::chrono::milliseconds interval, std::optional<Error> refusal = {}) {
    auto listening = ChannelServer::listen({});
    EXPECT_TRUE(listening) << (listening ? "" : listening.error().message);
    server = std::move(*listening);
    server->start({.on_hello =
                       [this, interval, refusal](ConnectionId id, Hello, std::string) {
                         if (refusal) {
                           EXPECT_TRUE(server->send(id, Refuse{*refusal}));
                           server->close(id);
                         } else {
                           EXPECT_TRUE(server->send(id, Welcome{"c1", 7, 5s, interval}));
                         }
                         hellos.put(id);
                       },
                   .on_message =
                       [this](ConnectionId id, ControlMessage message) {
                         if (const auto* beat = std::get_if<WorkerHeartbeat>(&message)) {
                           beats.put({id, beat->stats.rows_processed});
                         } else {
                           messages.put(std::move(message));
                         }
                       },
                   .on_closed = [this](ConnectionId id, Error) { ends.put(id); }});
  }

  std::string address() const { return fmt::format("127.0.0.1:{}", server->port()); }

  Inbox<ConnectionId> hellos, ends;
  Inbox<Beat> beats;
  Inbox<ControlMessage> messages;
  std::unique_ptr<ChannelServer> server;  // last: its thread uses the inboxes
};

/// A client whose heartbeats count from 1.
class TestClient {
 public:
  explicit TestClient(const std::string& address, std::chrono::seconds orphan_timeout = 0s)
      : client(std::make_unique<ControlClient>(
            ControlClientOptions{address, {}, orphan_timeout},
            ControlClientCallbacks{
                .on_message = [this](ControlMessage m) { messages.put(std::move(m)); },
                .make_heartbeat =
                    [this] {
                      beat_times.put(Clock::now());
                      return WorkerHeartbeat{{.rows_processed = ++beats}};
                    },
                .on_orphaned = [this](const Error& why) { orphaned.put(why); }})) {}

  std::atomic<std::uint64_t> beats{0};
  Inbox<Clock::time_point> beat_times;
  Inbox<ControlMessage> messages;
  Inbox<Error> orphaned;
  std::unique_ptr<ControlClient> client;  // last: its threads use the rest
};

/// An address that takes connections, whose owner never answers.
class SilentListener {
 public:
  SilentListener() {
    auto listening = ChannelServer::listen({});  // never started: nobody accepts
    EXPECT_TRUE(listening);
    server_ = std::move(*listening);
  }
  std::string address() const { return fmt::format("127.0.0.1:{}", server_->port()); }

 private:
  std::unique_ptr<ChannelServer> server_;
};

TEST(ControlClient, HeartbeatsArriveAtTheInterval) {
  constexpr auto kInterval = 50ms;
  constexpr std::uint64_t kBeats = 6;
  TestCoordinator coordinator(kInterval);
  TestClient client(coordinator.address());
  const auto connection = coordinator.hellos.take();
  ASSERT_TRUE(connection);
  std::optional<Clock::time_point> before;
  for (std::uint64_t number = 1; number <= kBeats; ++number) {
    const auto beat = coordinator.beats.take();
    const auto sent = client.beat_times.take();
    ASSERT_TRUE(beat && sent);
    EXPECT_EQ(beat->number, number);
    EXPECT_EQ(beat->connection, *connection);
    // A busy machine makes them late; nothing makes them early.
    if (before) {
      EXPECT_GE(*sent - *before, kInterval);
    }
    before = sent;
  }
}

TEST(ControlClient, MessagesGoBothWays) {
  TestCoordinator coordinator(20ms);
  TestClient client(coordinator.address());
  const auto connection = coordinator.hellos.take();
  ASSERT_TRUE(connection);
  ASSERT_TRUE(coordinator.server->send(*connection, LoadExperts{{5}, {{0, 1}}}));
  const auto load = client.messages.take();
  ASSERT_TRUE(load);
  EXPECT_EQ(std::get<LoadExperts>(*load).epoch.value, 5u);
  ASSERT_TRUE(client.client->send(ExpertsReady{{5}, 0, {}}));
  const auto ready = coordinator.messages.take();
  ASSERT_TRUE(ready);
  EXPECT_EQ(std::get<ExpertsReady>(*ready).epoch.value, 5u);
}

TEST(ControlClient, ConnectsAgainAfterTheServerClosed) {
  TestCoordinator coordinator(20ms);
  TestClient client(coordinator.address(), 60s);
  auto before = coordinator.hellos.take();
  ASSERT_TRUE(before);
  for (int round = 0; round < 3; ++round) {
    coordinator.server->close(*before);
    const auto after = coordinator.hellos.take();
    ASSERT_TRUE(after);
    EXPECT_NE(*after, *before);
    // Heartbeats and messages go over the new connection.
    std::optional<TestCoordinator::Beat> beat;
    do {
      beat = coordinator.beats.take();
      ASSERT_TRUE(beat);
    } while (beat->connection != *after);
    ASSERT_TRUE(client.client->send(Shutdown{"over the new one"}));
    ASSERT_TRUE(coordinator.messages.take());
    before = after;
  }
  EXPECT_TRUE(client.orphaned.empty());
}

TEST(ControlClient, WaitsForACoordinatorThatComesLater) {
  ChannelServerOptions options;
  {
    const auto gone = ChannelServer::listen({});
    ASSERT_TRUE(gone);
    options.port = (*gone)->port();
  }
  TestClient client(fmt::format("127.0.0.1:{}", options.port));
  const auto early = client.client->send(WorkerHeartbeat{});
  ASSERT_FALSE(early);
  EXPECT_EQ(early.error().code, ErrorCode::kUnavailable);
  auto late = ChannelServer::listen(options);
  ASSERT_TRUE(late) << late.error().message;
  Inbox<ConnectionId> hellos;
  (*late)->start({.on_hello = [&](ConnectionId id, Hello, std::string) { hellos.put(id); },
                  .on_message = [](ConnectionId, ControlMessage) {},
                  .on_closed = [](ConnectionId, Error) {}});
  EXPECT_TRUE(hellos.take());
  EXPECT_TRUE(client.orphaned.empty());
}

TEST(ControlClient, ARefusalOrphansAtOnceAndOnlyOnce) {
  TestCoordinator coordinator(20ms, fail(ErrorCode::kInvalidArgument, "another checkpoint"));
  TestClient client(coordinator.address(), 60s);
  const auto why = client.orphaned.take();
  ASSERT_TRUE(why);
  EXPECT_EQ(why->code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(why->message,
              AllOf(HasSubstr(coordinator.address()), HasSubstr("another checkpoint")));
  client.client.reset();
  EXPECT_TRUE(client.orphaned.empty());
  ASSERT_TRUE(coordinator.hellos.take());
  EXPECT_TRUE(coordinator.hellos.empty());  // it did not ask a second time
  EXPECT_EQ(client.beats, 0u);
}

TEST(ControlClient, ARefusalForNowIsTriedAgain) {
  TestCoordinator coordinator(20ms, fail(ErrorCode::kUnavailable, "starting"));
  TestClient client(coordinator.address(), 60s);
  EXPECT_TRUE(coordinator.hellos.take());
  EXPECT_TRUE(coordinator.hellos.take());
  EXPECT_TRUE(client.orphaned.empty());
}

TEST(ControlClient, OrphanedWhenTheCoordinatorIsGoneForTooLong) {
  auto coordinator = std::make_unique<TestCoordinator>(20ms);
  const std::string address = coordinator->address();
  TestClient client(address, 1s);
  ASSERT_TRUE(coordinator->beats.take());
  const Clock::time_point closed = Clock::now();
  coordinator.reset();
  const auto why = client.orphaned.take();
  ASSERT_TRUE(why);
  EXPECT_GE(Clock::now() - closed, 500ms);  // it counts from its last heartbeat
  EXPECT_EQ(why->code, ErrorCode::kUnavailable);
  EXPECT_THAT(why->message, HasSubstr(address));
  const auto sent = client.client->send(WorkerHeartbeat{});
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().code, ErrorCode::kUnavailable);
  client.client.reset();
  EXPECT_TRUE(client.orphaned.empty());
}

TEST(ControlClient, EndsPromptlyWhileItConnects) {
  const SilentListener silent;
  TestClient client(silent.address());
  const auto sent = client.client->send(WorkerHeartbeat{});
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().code, ErrorCode::kUnavailable);
  const Clock::time_point began = Clock::now();
  client.client.reset();
  EXPECT_LT(Clock::now() - began, 2s);  // the time limit for connecting is 5 s
  EXPECT_TRUE(client.orphaned.empty());
}

TEST(ControlClient, EndsPromptlyWhileItWaitsToTryAgain) {
  std::string address;
  {
    const SilentListener gone;
    address = gone.address();
  }
  TestClient client(address);
  const Clock::time_point began = Clock::now();
  client.client.reset();
  EXPECT_LT(Clock::now() - began, 2s);
}

TEST(ControlClient, EndsPromptlyBetweenHeartbeatsAndTheServerSeesIt) {
  TestCoordinator coordinator(60s);
  TestClient client(coordinator.address());
  ASSERT_TRUE(coordinator.beats.take());
  const Clock::time_point began = Clock::now();
  client.client.reset();
  EXPECT_LT(Clock::now() - began, 2s);
  EXPECT_TRUE(coordinator.ends.take());
  EXPECT_TRUE(client.orphaned.empty());
}

TEST(Channel, AStopEndsConnecting) {
  const SilentListener silent;
  std::stop_source stop;
  stop.request_stop();
  const auto never = Channel::connect(silent.address(), {}, {.stop = stop.get_token()});
  ASSERT_FALSE(never);
  EXPECT_EQ(never.error().code, ErrorCode::kCancelled);
  EXPECT_THAT(never.error().message, HasSubstr(silent.address()));
}

}  // namespace
}  // namespace moiety::proto
