#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/result.h"

namespace moiety::coordinator {

/// Tells a process from a later one with the same number.
struct ProcessIdentity {
  std::int64_t pid = 0;  ///< 0: not known
  std::uint64_t start_time =
      0;  ///< clock ticks since the machine started, field 22 of /proc/PID/stat
  bool operator==(const ProcessIdentity&) const = default;
};

/// Starts and ends worker processes, wherever they run. One thread uses it; no call blocks.
class Fleet {
 public:
  struct Exited {
    WorkerId worker;
    std::uint64_t incarnation = 0;
    std::string how;  ///< "exit status 1", "signal 9"
  };

  virtual ~Fleet() = default;

  /// What was started; pid 0 where somebody else starts the workers. kAlreadyExists: that id still
  /// runs. kIo: the process could not be made.
  virtual Result<ProcessIdentity> start(WorkerId worker, std::uint64_t incarnation) = 0;
  /// Takes over a process that an earlier coordinator started. False: it is gone, or another
  /// process has its number now; nothing was touched.
  virtual bool adopt(WorkerId worker,
                     std::uint64_t incarnation,
                     const ProcessIdentity& process) = 0;
  /// Asks it to end, and kills it when it has not after a grace. Nothing for a process that is
  /// gone.
  virtual void stop(WorkerId worker, std::uint64_t incarnation, Clock::time_point now) = 0;
  /// Kills it at once. Nothing for a process that is gone.
  virtual void kill(WorkerId worker, std::uint64_t incarnation) = 0;
  /// The processes that ended since the last call, each once.
  virtual std::vector<Exited> poll(Clock::time_point now) = 0;
};

}  // namespace moiety::coordinator
