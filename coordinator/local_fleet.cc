#include "coordinator/local_fleet.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/check.h"

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
  for (const auto& [worker, child] : children_) ::kill(child.pid, SIGKILL);
  for (const auto& [worker, child] : children_) {
    while (::waitpid(child.pid, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
}

Result<void> LocalFleet::start(WorkerId worker, std::uint64_t incarnation) {
  if (children_.contains(worker)) {
    return fail(ErrorCode::kAlreadyExists,
                fmt::format("worker {} has a process already", worker.value));
  }
  std::vector<std::string> command = options_.command(worker, incarnation);
  MOIETY_CHECK(!command.empty(), "a worker's command line");
  std::vector<std::string> environment = merged_environment(options_.environment);
  SpawnSetup setup;
  if (options_.log_dir)
    setup.log_to(*options_.log_dir / fmt::format("worker-{}.log", worker.value));
  Child child;
  child.incarnation = incarnation;
  const int error =
      setup.spawn(&child.pid, c_strings(command).data(), c_strings(environment).data());
  if (error != 0) {
    return fail(ErrorCode::kIo,
                fmt::format("cannot start {}: {}", command.front(), std::strerror(error)));
  }
  children_.emplace(worker, child);
  return {};
}

LocalFleet::Child* LocalFleet::find(WorkerId worker, std::uint64_t incarnation) {
  const auto it = children_.find(worker);
  return it != children_.end() && it->second.incarnation == incarnation ? &it->second : nullptr;
}

void LocalFleet::stop(WorkerId worker, std::uint64_t incarnation, Clock::time_point now) {
  Child* child = find(worker, incarnation);
  if (child == nullptr || child->kill_at) return;
  ::kill(child->pid, SIGTERM);
  child->kill_at = now + options_.stop_grace;
}

void LocalFleet::kill(WorkerId worker, std::uint64_t incarnation) {
  if (const Child* child = find(worker, incarnation)) ::kill(child->pid, SIGKILL);
}

std::vector<Fleet::Exited> LocalFleet::poll(Clock::time_point now) {
  std::vector<Exited> exited;
  for (auto it = children_.begin(); it != children_.end();) {
    auto& [worker, child] = *it;
    int status = 0;
    // The pid stays ours until it is reaped here, so that a signal cannot reach another process.
    if (::waitpid(child.pid, &status, WNOHANG) == child.pid) {
      exited.push_back({worker, child.incarnation, describe_status(status)});
      it = children_.erase(it);
      continue;
    }
    if (child.kill_at && now >= *child.kill_at) ::kill(child.pid, SIGKILL);
    ++it;
  }
  return exited;
}

std::optional<pid_t> LocalFleet::pid(WorkerId worker) const {
  const auto it = children_.find(worker);
  return it == children_.end() ? std::nullopt : std::optional(it->second.pid);
}

}  // namespace moiety::coordinator
