#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/result.h"

namespace moiety::coordinator {

/// Starts and ends worker processes, wherever they run. One thread uses it; no call blocks.
class Fleet {
 public:
  struct Exited {
    WorkerId worker;
    std::uint64_t incarnation = 0;
    std::string how;  ///< "exit status 1", "signal 9"
  };

  virtual ~Fleet() = default;

  /// kAlreadyExists: that id still runs. kIo: the process could not be made.
  virtual Result<void> start(WorkerId worker, std::uint64_t incarnation) = 0;
  /// Asks it to end, and kills it when it has not after a grace. Nothing for a process that is
  /// gone.
  virtual void stop(WorkerId worker, std::uint64_t incarnation, Clock::time_point now) = 0;
  /// Kills it at once. Nothing for a process that is gone.
  virtual void kill(WorkerId worker, std::uint64_t incarnation) = 0;
  /// The processes that ended since the last call, each once.
  virtual std::vector<Exited> poll(Clock::time_point now) = 0;
};

}  // namespace moiety::coordinator
