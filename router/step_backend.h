#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/placement.h"
#include "common/result.h"
#include "model/moe_backend.h"

namespace moiety {

/// What a backend has done since it was made; all zero in embedded mode.
struct BackendStats {
  std::uint64_t layers = 0;          ///< MoE layers run
  std::uint64_t dispatches = 0;      ///< messages sent
  std::uint64_t rows = 0;            ///< tokens times layers
  std::uint64_t row_copies = 0;      ///< rows sent: row_copies / rows is the mean fan-out
  std::uint64_t stale_dropped = 0;   ///< replies that matched no dispatch under way
  std::uint64_t bytes_sent = 0;      ///< payload
  std::uint64_t bytes_received = 0;  ///< payload
  std::chrono::nanoseconds wait{0};  ///< from the first send to the last reply, summed over layers
  std::chrono::nanoseconds compute{0};  ///< of the slowest worker of each layer, by its own stamps
};

/// A MoeBackend as the step loop drives it. All calls come from the step loop's thread, except
/// interrupt().
class StepBackend : public MoeBackend {
 public:
  /// Called before the forward pass of each step; steps count from 1.
  virtual void begin_step(std::uint64_t step) = 0;

  /// Switches to a new epoch, between two steps. Workers that cannot be reached count as lost and
  /// are returned.
  virtual std::vector<WorkerId> apply(const EpochView& view) = 0;

  /// Why rows of the last step failed; meaningful only when some did.
  virtual Error failure() const = 0;

  virtual BackendStats stats() const { return {}; }

  /// Sleeps until the deadline, interrupt(), or something that the backend itself watches (a lost
  /// worker).
  virtual void idle_wait(Deadline deadline) = 0;

  /// Ends an idle_wait() that is under way, or the next one. Any thread.
  virtual void interrupt() = 0;
};

/// A worker's lane failed: (worker, incarnation, why). Called on the step loop's thread.
using SuspectCallback =
    std::function<void(WorkerId, std::uint64_t incarnation, const std::string& why)>;

}  // namespace moiety
