#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <map>
#include <memory>
#include <string>

#include "fabric/ucx/ucx_lane.h"
#include "tests/fabric/echo.h"

extern char** environ;

namespace moiety::fabric {
namespace {

/// A worker in a process of its own, killed with the object at the latest.
class EchoProcess {
 public:
  EchoProcess(std::uint64_t id, std::uint64_t incarnation) {
    int pipe_ends[2] = {-1, -1};
    EXPECT_EQ(pipe(pipe_ends), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], STDOUT_FILENO);
    posix_spawn_file_actions_addclose(&actions, pipe_ends[0]);
    std::string arguments[] = {MOIETY_ECHO_WORKER, std::to_string(id), std::to_string(incarnation),
                               kToken};
    char* argv[] = {arguments[0].data(), arguments[1].data(), arguments[2].data(),
                    arguments[3].data(), nullptr};
    EXPECT_EQ(posix_spawn(&pid_, MOIETY_ECHO_WORKER, &actions, nullptr, argv, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    ::close(pipe_ends[1]);
    char byte = 0;
    while (read(pipe_ends[0], &byte, 1) == 1 && byte != '\n') address_ += byte;
    ::close(pipe_ends[0]);
  }
  ~EchoProcess() { kill(); }
  EchoProcess(const EchoProcess&) = delete;
  EchoProcess& operator=(const EchoProcess&) = delete;

  const std::string& address() const { return address_; }
  void stop() { ::kill(pid_, SIGSTOP); }
  void go_on() { ::kill(pid_, SIGCONT); }
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
  std::string address_;
};

class UcxProcesses : public ::testing::Test {
 protected:
  static constexpr std::uint64_t kVictim = 2;

  void SetUp() override {
    auto lane = open_ucx_router_lane(router_identity(5));
    ASSERT_TRUE(lane) << lane.error().message;
    lane_ = std::move(*lane);
    for (std::uint64_t id = 1; id <= 3; ++id) start(id, 1);
  }

  void start(std::uint64_t id, std::uint64_t incarnation) {
    auto& process = workers_[id];
    process = std::make_unique<EchoProcess>(id, incarnation);
    const auto result = connect_now(*lane_, process->address(), id, incarnation, generous());
    ASSERT_TRUE(result) << result.error().message;
  }

  void expect_echo(std::uint64_t id, std::uint64_t incarnation, std::uint64_t step) {
    const Header header = dispatch_header(5, step, incarnation);
    ASSERT_TRUE(lane_->send(id, header, payload_of(id, step, 10'000)));
    const Event event = lane_->wait(generous());
    ASSERT_EQ(event.type, Event::Type::kMessage);
    EXPECT_EQ(event.peer, id);
    EXPECT_TRUE(event.header.answers(header));
    EXPECT_EQ(event.payload, payload_of(id, step, 10'000));
  }

  std::unique_ptr<RouterLane> lane_;
  std::map<std::uint64_t, std::unique_ptr<EchoProcess>> workers_;
};

TEST_F(UcxProcesses, KilledWorkerIsLostOnceAndRestarts) {
  for (std::uint64_t incarnation = 1; incarnation <= 8; ++incarnation) {
    SCOPED_TRACE(incarnation);
    expect_echo(kVictim, incarnation, incarnation);
    const auto killed = Clock::now();
    workers_[kVictim]->kill();
    const Event lost = lane_->wait(generous());
    EXPECT_LT(Clock::now() - killed, std::chrono::seconds(1));
    ASSERT_EQ(lost.type, Event::Type::kPeerLost);
    EXPECT_EQ(lost.peer, kVictim);
    EXPECT_FALSE(lane_->connected(kVictim));
    expect_echo(1, 1, 100 + incarnation);
    expect_echo(3, 1, 200 + incarnation);
    EXPECT_EQ(lane_->wait(in(milliseconds(30))).type, Event::Type::kTimeout) << "lost twice";
    start(kVictim, incarnation + 1);
  }
}

// A stopped process accepts connections (its kernel does) and takes bytes until its buffers are
// full. Neither connect() nor send() to it holds up the others, and its late answers carry the old
// header.
TEST_F(UcxProcesses, StoppedWorkerHoldsUpNobody) {
  workers_[kVictim]->stop();
  const Header old = dispatch_header(5, 1);
  const auto start = Clock::now();
  for (int i = 0; i < 4; ++i)
    ASSERT_TRUE(lane_->send(kVictim, old, payload_of(kVictim, 1, 6 << 20)));
  expect_echo(1, 1, 2);
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(1));
  workers_[kVictim]->go_on();
  const Event stale = lane_->wait(generous());
  ASSERT_EQ(stale.type, Event::Type::kMessage);
  EXPECT_EQ(stale.peer, kVictim);
  EXPECT_TRUE(stale.header.answers(old));
  EXPECT_FALSE(stale.header.answers(dispatch_header(5, 2)));

  workers_[kVictim]->stop();
  const auto again = Clock::now();
  lane_->connect(workers_[kVictim]->address(), kVictim, 1, again + milliseconds(300));
  EXPECT_LT(Clock::now() - again, milliseconds(100));
  expect_echo(3, 1, 3);
  EXPECT_LT(Clock::now() - again, milliseconds(250)) << "before the connect ended";
  const Event failed = lane_->wait(generous());
  ASSERT_EQ(failed.type, Event::Type::kPeerLost);
  EXPECT_EQ(failed.peer, kVictim);
  EXPECT_EQ(failed.error.code, ErrorCode::kUnavailable);
  workers_[kVictim]->go_on();
  const auto back = connect_now(*lane_, workers_[kVictim]->address(), kVictim, 1, generous());
  ASSERT_TRUE(back) << back.error().message;
  expect_echo(kVictim, 1, 4);
}

// Payloads are under way to the worker and from it when it dies, short ones and rendezvous.
TEST_F(UcxProcesses, KilledAmidTraffic) {
  for (const std::size_t size : {1000, 300'000, 8 << 20}) {
    SCOPED_TRACE(size);
    for (std::uint64_t step = 1; step <= 20; ++step) {
      ASSERT_TRUE(lane_->send(kVictim, dispatch_header(5, step), payload_of(kVictim, step, size)));
    }
    ASSERT_EQ(lane_->wait(generous()).type, Event::Type::kMessage);
    const auto killed = Clock::now();
    workers_[kVictim]->kill();
    Event event = lane_->wait(generous());
    for (std::uint64_t step = 2; event.type == Event::Type::kMessage; ++step) {
      EXPECT_EQ(event.payload, payload_of(kVictim, step, size)) << "a torn message";
      event = lane_->wait(generous());
    }
    EXPECT_LT(Clock::now() - killed, std::chrono::seconds(1));
    ASSERT_EQ(event.type, Event::Type::kPeerLost);
    EXPECT_EQ(event.peer, kVictim);
    expect_echo(1, 1, 50);
    expect_echo(3, 1, 51);
    EXPECT_EQ(lane_->wait(in(milliseconds(30))).type, Event::Type::kTimeout);
    start(kVictim, 1);
  }
}

TEST_F(UcxProcesses, SendToADeadWorkerFailsAndOthersGoOn) {
  workers_[kVictim]->kill();
  // The router has not looked yet; sends may still be taken, and the loss comes once.
  for (std::uint64_t step = 1; step <= 5; ++step) {
    if (!lane_->send(kVictim, dispatch_header(5, step), payload_of(kVictim, step, 100'000))) break;
  }
  const Event lost = lane_->wait(generous());
  ASSERT_EQ(lost.type, Event::Type::kPeerLost);
  const auto sent = lane_->send(kVictim, dispatch_header(5, 6), {});
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().code, ErrorCode::kWorkerLost);
  expect_echo(1, 1, 7);
  EXPECT_EQ(lane_->wait(in(milliseconds(30))).type, Event::Type::kTimeout);
}

}  // namespace
}  // namespace moiety::fabric
