#pragma once

#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/fleet.h"

namespace moiety::coordinator {

/// Workers as child processes on this machine.
///
/// Each child leads a process group of its own (Ctrl-C in a terminal reaches only the coordinator,
/// which ends the cluster in order), inherits no file descriptor but 0-2 and no blocked signal.
/// Only the pids that were started here are signalled and waited for.
class LocalFleet : public Fleet {
 public:
  struct Options {
    /// Program and arguments of one worker; the program is a path, PATH is not searched.
    std::function<std::vector<std::string>(WorkerId, std::uint64_t incarnation)> command;
    /// NAME=VALUE, in place of the same name in our environment.
    std::vector<std::string> environment;
    /// Output goes to LOG_DIR/worker-ID.log (appended); inherited when absent.
    std::optional<std::filesystem::path> log_dir;
    std::chrono::milliseconds stop_grace{5000};
  };

  explicit LocalFleet(Options options);
  /// Kills and reaps what still runs: no child outlives it.
  ~LocalFleet() override;
  LocalFleet(const LocalFleet&) = delete;
  LocalFleet& operator=(const LocalFleet&) = delete;

  Result<void> start(WorkerId worker, std::uint64_t incarnation) override;
  void stop(WorkerId worker, std::uint64_t incarnation, Clock::time_point now) override;
  void kill(WorkerId worker, std::uint64_t incarnation) override;
  std::vector<Exited> poll(Clock::time_point now) override;

  /// Of a running child; nullopt when there is none.
  std::optional<pid_t> pid(WorkerId worker) const;

 private:
  struct Child {
    std::uint64_t incarnation = 0;
    pid_t pid = -1;
    std::optional<Clock::time_point> kill_at;  // after stop()
  };
  Child* find(WorkerId worker, std::uint64_t incarnation);

  const Options options_;
  std::map<WorkerId, Child> children_;  // not reaped yet
};

}  // namespace moiety::coordinator
