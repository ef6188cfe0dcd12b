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
#include "common/process_start.h"
#include "coordinator/static_fleet.h"

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

/// A process that is not a child of this one, as after a restart of the coordinator: started by a
/// child that ended. Killed at the end of the test.
class Orphan {
 public:
  explicit Orphan(const std::string& script, bool ignores_term = false) {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      if (ignores_term) ::signal(SIGTERM, SIG_IGN);
      const pid_t grandchild = ::fork();
      if (grandchild == 0) {
        ::setpgid(0, 0);
        ::execl("/bin/sh", "/bin/sh", "-c", script.c_str(), nullptr);
        ::_exit(127);
      }
      const bool said = ::write(ends[1], &grandchild, sizeof grandchild) == sizeof grandchild;
      ::_exit(said ? 0 : 1);
    }
    EXPECT_EQ(::read(ends[0], &pid_, sizeof pid_), ssize_t{sizeof pid_});
    ::close(ends[0]);
    ::close(ends[1]);
    ::waitpid(child, nullptr, 0);
    identity_ = {pid_, process_start_time(pid_).value_or(0)};
  }
  ~Orphan() {
    if (process_start_time(pid_) == identity_.start_time) ::kill(pid_, SIGKILL);
  }
  const ProcessIdentity& identity() const { return identity_; }

 private:
  pid_t pid_ = -1;
  ProcessIdentity identity_;
};

constexpr const char* kForEver = "while :; do sleep 0.02; done";

TEST_F(LocalFleetTest, StartTellsTheIdentity) {
  LocalFleet fleet(shell("exec sleep 1000"));
  const auto started = fleet.start(WorkerId{1}, 7);
  ASSERT_TRUE(started);
  EXPECT_EQ(started->pid, *fleet.pid(WorkerId{1}));
  EXPECT_EQ(started->start_time, process_start_time(started->pid));
  EXPECT_GT(started->start_time, 0u);
}

TEST_F(LocalFleetTest, AdoptsAProcessThatIsNotItsChild) {
  const Orphan orphan(kForEver);
  LocalFleet fleet(shell("unused"));
  ASSERT_TRUE(fleet.adopt(WorkerId{1}, 5, orphan.identity()));
  EXPECT_EQ(fleet.pid(WorkerId{1}), orphan.identity().pid);
  EXPECT_TRUE(fleet.poll(Clock::now()).empty());
  EXPECT_EQ(fleet.start(WorkerId{1}, 6).error().code, ErrorCode::kAlreadyExists);
  fleet.kill(WorkerId{1}, 4);  // another incarnation
  EXPECT_TRUE(fleet.poll(Clock::now()).empty());

  fleet.stop(WorkerId{1}, 5, Clock::now());
  const auto exited = wait_exit(fleet);
  EXPECT_EQ(exited[0].worker, WorkerId{1});
  EXPECT_EQ(exited[0].incarnation, 5u);
  EXPECT_FALSE(fleet.pid(WorkerId{1}));
}

TEST_F(LocalFleetTest, AdoptedProcessesAreKilledAfterTheirGrace) {
  const Orphan orphan(kForEver, /*ignores_term=*/true);
  LocalFleet fleet(shell("unused"));
  ASSERT_TRUE(fleet.adopt(WorkerId{1}, 5, orphan.identity()));
  const auto asked = Clock::now();
  fleet.stop(WorkerId{1}, 5, asked);
  EXPECT_TRUE(fleet.poll(asked + 4999ms).empty());
  EXPECT_TRUE(fleet.poll(asked + 5000ms).empty());  // kills; the end shows later
  wait_exit(fleet);
}

TEST_F(LocalFleetTest, AnotherProcessWithTheNumberIsNotTouched) {
  const Orphan orphan(kForEver);
  LocalFleet fleet(shell("unused"));
  ProcessIdentity earlier = orphan.identity();
  earlier.start_time -= 1;
  EXPECT_FALSE(fleet.adopt(WorkerId{1}, 5, earlier));
  EXPECT_FALSE(fleet.adopt(WorkerId{1}, 5, {orphan.identity().pid, 0}));
  EXPECT_FALSE(fleet.adopt(WorkerId{1}, 5, {}));
  EXPECT_FALSE(fleet.adopt(WorkerId{1}, 5, {1, *process_start_time(1)})) << "init is no worker";
  fleet.kill(WorkerId{1}, 5);
  EXPECT_TRUE(exists(static_cast<pid_t>(orphan.identity().pid)));
  EXPECT_FALSE(fleet.pid(WorkerId{1}));
}

TEST_F(LocalFleetTest, AProcessThatHasEndedIsNotAdopted) {
  ProcessIdentity gone;
  {
    LocalFleet fleet(shell("exit 0"));
    gone = *fleet.start(WorkerId{1}, 1);
    wait_exit(fleet);
  }
  LocalFleet fleet(shell("unused"));
  EXPECT_FALSE(fleet.adopt(WorkerId{1}, 1, gone));
}

TEST_F(LocalFleetTest, AdoptedProcessesOutliveAFleetThatDidNotEndThem) {
  const Orphan kept(kForEver);
  const Orphan ended(kForEver, /*ignores_term=*/true);
  {
    LocalFleet fleet(shell("unused"));
    ASSERT_TRUE(fleet.adopt(WorkerId{1}, 5, kept.identity()));
    ASSERT_TRUE(fleet.adopt(WorkerId{2}, 5, ended.identity()));
    fleet.stop(WorkerId{2}, 5, Clock::now());
  }
  EXPECT_TRUE(exists(static_cast<pid_t>(kept.identity().pid)));
  EXPECT_TRUE(LocalFleet(shell("unused")).adopt(WorkerId{1}, 5, kept.identity()));
  const auto deadline = Clock::now() + 10s;
  bool lives = true;
  while (lives && Clock::now() < deadline)
    lives = LocalFleet(shell("unused")).adopt(WorkerId{2}, 5, ended.identity());
  EXPECT_FALSE(lives) << "it was asked to end and lives on";
}

TEST(StaticFleetTest, ClosingCountsAsAnEnd) {
  StaticFleet fleet;
  EXPECT_EQ(fleet.start(WorkerId{3}, 1)->pid, 0);
  EXPECT_TRUE(fleet.adopt(WorkerId{3}, 1, {}));
  EXPECT_TRUE(fleet.poll(Clock::now()).empty());
  fleet.kill(WorkerId{3}, 9);
  const auto exited = fleet.poll(Clock::now());
  ASSERT_EQ(exited.size(), 1u);
  EXPECT_EQ(exited[0].incarnation, 9u);
  EXPECT_TRUE(fleet.poll(Clock::now()).empty());
}

}  // namespace
}  // namespace moiety::coordinator
