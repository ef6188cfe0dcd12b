#include "coordinator/local_fleet.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/check.h"
#include "common/process_start.h"

// glibc 2.36 declares these without extern "C".
extern "C" {
#include <sys/pidfd.h>
}

namespace moiety::coordinator {

namespace {

std::string describe_status(int status) {
  if (WIFSIGNALED(status)) {
    return fmt::format("signal {} ({})", WTERMSIG(status), ::strsignal(WTERMSIG(status)));
  }
  return fmt::format("exit status {}", WEXITSTATUS(status));
}

/// Our environment with `overrides` (NAME=VALUE) in place of what has the same name.
std::vector<std::string> merged_environment(const std::vector<std::string>& overrides) {
  std::vector<std::string> merged = overrides;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view own(*entry);
    const std::string_view name = own.substr(0, own.find('=') + 1);
    const bool replaced =
        std::any_of(overrides.begin(), overrides.end(),
                    [name](const std::string& each) { return each.starts_with(name); });
    if (!replaced) merged.emplace_back(own);
  }
  return merged;
}

std::vector<char*> c_strings(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& each : strings) pointers.push_back(each.data());
  pointers.push_back(nullptr);
  return pointers;
}

/// What posix_spawn does between fork and exec.
class SpawnSetup {
 public:
  SpawnSetup() {
    ::posix_spawnattr_init(&attributes_);
    ::posix_spawn_file_actions_init(&files_);
    sigset_t signals;
    sigemptyset(&signals);
    ::posix_spawnattr_setsigmask(&attributes_, &signals);
    sigfillset(&signals);
    ::posix_spawnattr_setsigdefault(&attributes_, &signals);
    ::posix_spawnattr_setpgroup(&attributes_, 0);
    ::posix_spawnattr_setflags(
        &attributes_, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    ::posix_spawn_file_actions_addopen(&files_, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  }
  ~SpawnSetup() {
    ::posix_spawn_file_actions_destroy(&files_);
    ::posix_spawnattr_destroy(&attributes_);
  }
  SpawnSetup(const SpawnSetup&) = delete;
  SpawnSetup& operator=(const SpawnSetup&) = delete;

  void log_to(const std::string& file) {
    ::posix_spawn_file_actions_addopen(&files_, STDOUT_FILENO, file.c_str(),
                                       O_WRONLY | O_CREAT | O_APPEND, 0644);
    ::posix_spawn_file_actions_adddup2(&files_, STDOUT_FILENO, STDERR_FILENO);
  }
  /// 0, or an errno.
  int spawn(pid_t* pid, char* const* arguments, char* const* environment) {
    // Sockets that libraries opened without close-on-exec would keep our ports bound.
    ::posix_spawn_file_actions_addclosefrom_np(&files_, STDERR_FILENO + 1);
    return ::posix_spawn(pid, arguments[0], &files_, &attributes_, arguments, environment);
  }

 private:
  posix_spawnattr_t attributes_;
  posix_spawn_file_actions_t files_;
};

}  // namespace

LocalFleet::LocalFleet(Options options) : options_(std::move(options)) {}

LocalFleet::~LocalFleet() {
  for (const auto& [worker, process] : processes_) {
    if (!process.adopted || process.kill_at) signal(process, SIGKILL);
  }
  for (const auto& [worker, process] : processes_) {
    if (process.adopted) continue;
    while (::waitpid(process.pid, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
}

void LocalFleet::signal(const Process& process, int number) {
  // A child's pid stays ours until it is reaped.
  if (process.adopted) {
    ::pidfd_send_signal(process.adopted.get(), number, nullptr, 0);
  } else {
    ::kill(process.pid, number);
  }
}

std::optional<std::string> LocalFleet::ended(const Process& process) {
  if (process.adopted) {
    pollfd gone{process.adopted.get(), POLLIN, 0};
    if (::poll(&gone, 1, 0) != 1) return std::nullopt;
    return "its status went to another process: a coordinator before this one started it";
  }
  int status = 0;
  if (::waitpid(process.pid, &status, WNOHANG) != process.pid) return std::nullopt;
  return describe_status(status);
}

Result<ProcessIdentity> LocalFleet::start(WorkerId worker, std::uint64_t incarnation) {
  if (processes_.contains(worker)) {
    return fail(ErrorCode::kAlreadyExists,
                fmt::format("worker {} has a process already", worker.value));
  }
  std::vector<std::string> command = options_.command(worker, incarnation);
  MOIETY_CHECK(!command.empty(), "a worker's command line");
  std::vector<std::string> environment = merged_environment(options_.environment);
  SpawnSetup setup;
  if (options_.log_dir)
    setup.log_to(*options_.log_dir / fmt::format("worker-{}.log", worker.value));
  Process child;
  child.incarnation = incarnation;
  const int error =
      setup.spawn(&child.pid, c_strings(command).data(), c_strings(environment).data());
  if (error != 0) {
    return fail(ErrorCode::kIo,
                fmt::format("cannot start {}: {}", command.front(), std::strerror(error)));
  }
  // It is not reaped yet, so that /proc shows it even if it has ended.
  const ProcessIdentity identity{child.pid, process_start_time(child.pid).value_or(0)};
  processes_.emplace(worker, std::move(child));
  return identity;
}

bool LocalFleet::adopt(WorkerId worker, std::uint64_t incarnation, const ProcessIdentity& process) {
  if (process.pid <= 1 || process.start_time == 0 || processes_.contains(worker)) return false;
  Process adopted;
  adopted.incarnation = incarnation;
  adopted.pid = static_cast<pid_t>(process.pid);
  adopted.adopted = Fd(::pidfd_open(adopted.pid, 0));
  // In this order: what the descriptor names cannot change any more when the start time is read.
  if (!adopted.adopted || process_start_time(process.pid) != process.start_time) return false;
  if (ended(adopted)) return false;
  processes_.emplace(worker, std::move(adopted));
  return true;
}

LocalFleet::Process* LocalFleet::find(WorkerId worker, std::uint64_t incarnation) {
  const auto it = processes_.find(worker);
  return it != processes_.end() && it->second.incarnation == incarnation ? &it->second : nullptr;
}

void LocalFleet::stop(WorkerId worker, std::uint64_t incarnation, Clock::time_point now) {
  Process* process = find(worker, incarnation);
  if (process == nullptr || process->kill_at) return;
  signal(*process, SIGTERM);
  process->kill_at = now + options_.stop_grace;
}

void LocalFleet::kill(WorkerId worker, std::uint64_t incarnation) {
  if (const Process* process = find(worker, incarnation)) signal(*process, SIGKILL);
}

std::vector<Fleet::Exited> LocalFleet::poll(Clock::time_point now) {
  std::vector<Exited> exited;
  for (auto it = processes_.begin(); it != processes_.end();) {
    auto& [worker, process] = *it;
    if (auto how = ended(process)) {
      exited.push_back({worker, process.incarnation, std::move(*how)});
      it = processes_.erase(it);
      continue;
    }
    if (process.kill_at && now >= *process.kill_at) signal(process, SIGKILL);
    ++it;
  }
  return exited;
}

std::optional<pid_t> LocalFleet::pid(WorkerId worker) const {
  const auto it = processes_.find(worker);
  return it == processes_.end() ? std::nullopt : std::optional(it->second.pid);
}

}  // namespace moiety::coordinator
