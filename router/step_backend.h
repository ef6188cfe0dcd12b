#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/placement.h"
#include "common/result.h"
#include "model/moe_backend.h"

namespace moiety {

/// What a backend has done since it was made; all zero in embedded mode.
struct BackendStats {
  std::uint64_t layers = 0;          ///< MoE layers run; two for a layer in two micro-batches
  std::uint64_t dispatches = 0;      ///< messages sent
  std::uint64_t rows = 0;            ///< tokens times layers
  std::uint64_t row_copies = 0;      ///< rows sent: row_copies / rows is the mean fan-out
  std::uint64_t local_pairs = 0;     ///< (row, expert) pairs that this router computed itself
  std::uint64_t redispatches = 0;    ///< messages sent again to other owners, within a layer
  std::uint64_t hedges = 0;          ///< late messages that others were asked for too
  std::uint64_t hedges_won = 0;      ///< of these, those where the others were complete first
  std::uint64_t stale_dropped = 0;   ///< replies that matched no dispatch under way
  std::uint64_t bytes_sent = 0;      ///< payload
  std::uint64_t bytes_received = 0;  ///< payload
  std::chrono::nanoseconds wait{0};  ///< from the first send to the last reply, summed over layers
  std::chrono::nanoseconds blocked{0};  ///< of that, what the step loop had nothing else to do
  // The same wait, as the last reply of each layer tells it: by its worker's own stamps, and the
  // rest. What was re-dispatched counts as network.
  std::chrono::nanoseconds network{0};
  std::chrono::nanoseconds queue{0};    ///< from its arrival there to the start of its computation
  std::chrono::nanoseconds compute{0};  ///< of that worker
  std::map<WorkerId, std::uint64_t> slowest;  ///< layers that waited for this worker last
  /// Workers lost, by how it was noticed: "connection", "silent", "epoch", "refused".
  std::map<std::string, std::uint64_t> lost;
  /// From the dispatch to the loss, summed over workers that were lost while a layer waited.
  std::chrono::nanoseconds detection{0};
};

/// The experts in the memory of this process, now.
struct HeldExperts {
  std::uint64_t experts = 0;
  std::uint64_t bytes = 0;
};

/// [layer][expert]: 1 where some worker in reach holds the expert. Dense layers are empty.
using ReachableExperts = std::vector<std::vector<std::uint8_t>>;

/// A MoeBackend as the step loop drives it. All calls come from the step loop's thread, except
/// announce(), held() and interrupt().
class StepBackend : public MoeBackend {
 public:
  /// Called before the forward pass of each step; steps count from 1.
  virtual void begin_step(std::uint64_t step) = 0;

  /// A view that apply() will get: what waits for a worker that it declares lost, waits no longer.
  /// Any thread.
  virtual void announce(const EpochView& /*view*/) {}

  /// Begins to switch to a new epoch, between two steps; returns at once. Until the switch is over
  /// (applied()), experts are also asked from the owners of the epoch before, where those of the
  /// new one are not connected yet. A newer view takes the place of one that is under way.
  virtual void apply(const EpochView& view) = 0;

  /// The workers of the new epoch that cannot be reached, once after the switch is over: when each
  /// is connected or given up. Ask before every step.
  virtual std::optional<std::vector<WorkerId>> applied() = 0;

  /// Rises whenever an expert may have come into reach. Does not change where rows never fail with
  /// kRowMissing.
  virtual std::uint64_t gained() const { return 0; }
  virtual ReachableExperts reachable() const { return {}; }

  /// Why rows of the last step failed; meaningful only when some did.
  virtual Error failure() const = 0;

  virtual BackendStats stats() const { return {}; }

  /// Any thread.
  virtual HeldExperts held() const { return {}; }

  /// Sleeps until the deadline, interrupt(), or something that the backend itself watches (a worker
  /// that comes or goes).
  virtual void idle_wait(Deadline deadline) = 0;

  /// Ends an idle_wait() that is under way, or the next one. Any thread.
  virtual void interrupt() = 0;
};

/// A worker's lane failed: (worker, incarnation, why). Called on the step loop's thread.
using SuspectCallback =
    std::function<void(WorkerId, std::uint64_t incarnation, const std::string& why)>;

}  // namespace moiety
