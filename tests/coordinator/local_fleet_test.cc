#include "coordinator/local_fleet.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

#include "common/file.h"

namespace moiety::coordinator {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

/// A folder of this test's own, removed at the end.
class LocalFleetTest : public testing::Test {
 protected:
  LocalFleetTest() {
    std::string name = (std::filesystem::temp_directory_path() / "moiety-fleet-XXXXXX").string();
    dir_ = ::mkdtemp(name.data());
  }
  ~LocalFleetTest() override { std::filesystem::remove_all(dir_); }

  /// A fleet whose workers run a shell script; $1 is the id, $2 the incarnation.
  LocalFleet::Options shell(const std::string& script) const {
    LocalFleet::Options options;
    options.command = [script](WorkerId id, std::uint64_t incarnation) {
      return std::vector<std::string>{
          "/bin/sh", "-c", script, "worker", std::to_string(id.value), std::to_string(incarnation)};
    };
    options.log_dir = dir_;
    return options;
  }

  /// Polls until a child ended; fails after ten seconds.
  static std::vector<Fleet::Exited> wait_exit(LocalFleet& fleet) {
    const auto deadline = Clock::now() + 10s;
    while (Clock::now() < deadline) {
      auto exited = fleet.poll(Clock::now());
      if (!exited.empty()) return exited;
      std::this_thread::yield();
    }
    ADD_FAILURE() << "no child ended";
    return {{}};
  }

  std::string wait_log(const std::string& text) const {
    const auto deadline = Clock::now() + 10s;
    while (Clock::now() < deadline) {
      const auto log = read_file(dir_ / "worker-1.log");
      if (log && log->find(text) != std::string::npos) return *log;
      std::this_thread::yield();
    }
    ADD_FAILURE() << "the log does not say " << text;
    return "";
  }

  static bool exists(pid_t pid) { return ::kill(pid, 0) == 0; }

  std::filesystem::path dir_;
};

TEST_F(LocalFleetTest, StartsAndReapsWithTheStatus) {
  LocalFleet fleet(shell("echo worker $1 of $2; exit 7"));
  ASSERT_TRUE(fleet.start(WorkerId{1}, 42));
  const pid_t pid = fleet.pid(WorkerId{1}).value();
  const auto exited = wait_exit(fleet);
  ASSERT_EQ(exited.size(), 1u);
  EXPECT_EQ(exited[0].worker, WorkerId{1});
  EXPECT_EQ(exited[0].incarnation, 42u);
  EXPECT_EQ(exited[0].how, "exit status 7");
  EXPECT_FALSE(exists(pid)) << "not reaped";
  EXPECT_TRUE(fleet.poll(Clock::now()).empty()) << "reported twice";
  EXPECT_EQ(wait_log("worker 1"), "worker 1 of 42\n");
}

TEST_F(LocalFleetTest, StopAsksFirst) {
  LocalFleet fleet(shell("trap 'exit 3' TERM; echo up; while :; do sleep 0.02; done"));
  ASSERT_TRUE(fleet.start(WorkerId{1}, 1));
  wait_log("up");
  fleet.stop(WorkerId{1}, 1, Clock::now());
  EXPECT_EQ(wait_exit(fleet)[0].how, "exit status 3");
}

TEST_F(LocalFleetTest, StopKillsAfterItsGrace) {
  LocalFleet::Options options = shell("trap '' TERM; echo up; while :; do sleep 0.02; done");
  options.stop_grace = 5000ms;
  LocalFleet fleet(options);
  ASSERT_TRUE(fleet.start(WorkerId{1}, 1));
  wait_log("up");
  const auto asked = Clock::now();
  fleet.stop(WorkerId{1}, 1, asked);
  EXPECT_TRUE(fleet.poll(asked + 4999ms).empty());
  EXPECT_TRUE(fleet.poll(asked + 5000ms).empty());  // kills; the end shows later
  EXPECT_THAT(wait_exit(fleet)[0].how, HasSubstr("signal 9"));
}

TEST_F(LocalFleetTest, KillEndsAStoppedProcess) {
  LocalFleet fleet(shell("echo up; while :; do sleep 0.02; done"));
  ASSERT_TRUE(fleet.start(WorkerId{1}, 1));
  wait_log("up");
  ::kill(*fleet.pid(WorkerId{1}), SIGSTOP);
  fleet.kill(WorkerId{1}, 1);
  EXPECT_THAT(wait_exit(fleet)[0].how, HasSubstr("signal 9"));
}

TEST_F(LocalFleetTest, FormerIncarnationsAndOtherProcessesAreLeftAlone) {
  const pid_t other = ::fork();
  if (other == 0) {
    ::pause();
    ::_exit(0);
  }
  LocalFleet fleet(shell("echo up; while :; do sleep 0.02; done"));
  ASSERT_TRUE(fleet.start(WorkerId{1}, 2));
  wait_log("up");
  fleet.kill(WorkerId{1}, 1);
  fleet.stop(WorkerId{1}, 1, Clock::now());
  fleet.kill(WorkerId{2}, 2);
  EXPECT_EQ(fleet.start(WorkerId{1}, 3).error().code, ErrorCode::kAlreadyExists);
  ::kill(other, SIGKILL);
  // A child that the fleet did not start is not the fleet's to reap.
  siginfo_t info{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(other), &info, WEXITED | WNOWAIT), 0);
  EXPECT_TRUE(fleet.poll(Clock::now()).empty());
  EXPECT_EQ(::waitpid(other, nullptr, 0), other);
  EXPECT_TRUE(exists(*fleet.pid(WorkerId{1})));
}

TEST_F(LocalFleetTest, ChildrenGetOurEnvironmentAndNothingElse) {
  const Fd leaked(::open("/dev/null", O_RDONLY));  // without close-on-exec
  ::setenv("MOIETY_TOKEN", "from outside", 1);
  sigset_t blocked, before;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &blocked, &before);
  LocalFleet::Options options = shell(
      "echo token=$MOIETY_TOKEN home=$HOME fds=$(ls /proc/self/fd | wc -l); kill -TERM $$; echo "
      "survived");
  options.environment = {"MOIETY_TOKEN=secret"};
  LocalFleet fleet(options);
  ASSERT_TRUE(fleet.start(WorkerId{1}, 1));
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  EXPECT_THAT(wait_exit(fleet)[0].how, HasSubstr("signal 15")) << "a blocked signal was inherited";
  const std::string log = wait_log("token");
  EXPECT_THAT(log, HasSubstr("token=secret"));
  EXPECT_THAT(log, HasSubstr("fds=4")) << "0, 1, 2 and the one that ls opened";
  EXPECT_THAT(log, testing::Not(HasSubstr("survived")));
}

TEST_F(LocalFleetTest, AProgramThatCannotStartSaysSo) {
  LocalFleet::Options options;
  options.command = [](WorkerId, std::uint64_t) {
    return std::vector<std::string>{"/nonexistent/moiety-worker"};
  };
  LocalFleet fleet(options);
  const auto started = fleet.start(WorkerId{1}, 1);
  ASSERT_FALSE(started);
  EXPECT_THAT(started.error().message,
              testing::AllOf(HasSubstr("/nonexistent/moiety-worker"), HasSubstr("No such file")));
  EXPECT_FALSE(fleet.pid(WorkerId{1}));
}

TEST_F(LocalFleetTest, NoChildOutlivesTheFleet) {
  pid_t pid = -1;
  {
    LocalFleet fleet(shell("trap '' TERM; echo up; while :; do sleep 0.02; done"));
    ASSERT_TRUE(fleet.start(WorkerId{1}, 1));
    wait_log("up");
    pid = *fleet.pid(WorkerId{1});
  }
  EXPECT_FALSE(exists(pid));
}

}  // namespace
}  // namespace moiety::coordinator
