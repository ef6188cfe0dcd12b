#pragma once

#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/file.h"
#include "coordinator/fleet.h"

namespace moiety::coordinator {

/// Workers as processes on this machine: children, and those adopted from a coordinator that was
/// here before.
///
/// Each child leads a process group of its own (Ctrl-C in a terminal reaches only the coordinator,
/// which ends the cluster in order), inherits no file descriptor but 0-2 and no blocked signal. It
/// outlives a coordinator that is killed. An adopted process is held by a pidfd, so that a signal
/// never reaches another one that got its number. Only processes that were started or adopted here
/// are signalled and waited for.
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
  /// Kills and reaps the children that still run, and kills adopted processes that were asked to
  /// end. Other adopted ones go on: this coordinator did not get far enough to need them.
  ~LocalFleet() override;
  LocalFleet(const LocalFleet&) = delete;
  LocalFleet& operator=(const LocalFleet&) = delete;

  Result<ProcessIdentity> start(WorkerId worker, std::uint64_t incarnation) override;
  bool adopt(WorkerId worker, std::uint64_t incarnation, const ProcessIdentity& process) override;
  void stop(WorkerId worker, std::uint64_t incarnation, Clock::time_point now) override;
  void kill(WorkerId worker, std::uint64_t incarnation) override;
  std::vector<Exited> poll(Clock::time_point now) override;

  /// Of a running process; nullopt when there is none.
  std::optional<pid_t> pid(WorkerId worker) const;

 private:
  struct Process {
    std::uint64_t incarnation = 0;
    pid_t pid = -1;
    Fd adopted;                                // its pidfd; empty for a child
    std::optional<Clock::time_point> kill_at;  // after stop()
  };
  static void signal(const Process& process, int number);
  /// How it ended, or nullopt while it runs. Reaps a child.
  static std::optional<std::string> ended(const Process& process);
  Process* find(WorkerId worker, std::uint64_t incarnation);

  const Options options_;
  std::map<WorkerId, Process> processes_;  // not known to have ended yet
};

}  // namespace moiety::coordinator
