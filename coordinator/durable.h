#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/placement.h"
#include "common/result.h"
#include "coordinator/fleet.h"
#include "planner/place.h"

namespace moiety {
inline bool operator==(const Error& a, const Error& b) {
  return a.code == b.code && a.message == b.message;
}
}  // namespace moiety

/// What must survive a kill -9 of the coordinator at any instant. Plain values; the state machine
/// gives them out (Persist) and takes them back (its constructor), a store keeps them.
namespace moiety::coordinator {

/// Names one change, chosen by the client so that it can ask again; made by the state machine
/// ("deploy-12") where the client gave none. 1 to 128 bytes.
struct OperationId {
  std::string value;
  auto operator<=>(const OperationId&) const = default;
};

/// The values are stored: never change or reuse one.
enum class OperationKind : std::uint8_t {
  kStart = 0,
  kDeploy = 1,
  kUndeploy = 2,
  kDrain = 3,      ///< a worker's experts move elsewhere, then it is not used any more
  kUndrain = 4,    ///< it may be used again
  kRebalance = 5,  ///< the same deployments, placed anew over the workers that there are
};
enum class OperationState : std::uint8_t {
  kQueued = 0,
  kRunning = 1,
  kSucceeded = 2,
  kFailed = 3,
};

struct DurableOperation {
  OperationId id;
  OperationKind kind = OperationKind::kStart;
  OperationState state = OperationState::kQueued;
  std::string name;                     ///< deploy, undeploy: of the deployment
  std::optional<WorkerId> worker;       ///< drain, undrain
  std::vector<Deployment> deployments;  ///< to add; empty once it has ended
  std::uint64_t request_hash = 0;       ///< tells another request under the same id
  std::optional<Error> error;           ///< kFailed
  bool rolled_back = false;             ///< kFailed: everything is as it was before
  Epoch epoch;                          ///< kSucceeded: that it published
  planner::MoveCost cost;
  bool operator==(const DurableOperation&) const = default;
};

/// Of kind, name, worker and deployments: tells whether two calls ask for the same change.
std::uint64_t hash_request(const DurableOperation& operation);

struct DurableWorker {
  WorkerId id;
  std::uint64_t incarnation = 0;  ///< of the last process; 0: there was none
  /// What a fleet that starts workers needs to find the process again; pid 0 where it is unknown
  /// or somebody else started it.
  ProcessIdentity process;
  bool runs = false;     ///< started (or, static, let in) and not known to have ended
  bool ending = false;   ///< it was told to end, or killed, and may still run
  bool retired = false;  ///< by a drain
  std::uint64_t losses = 0;
  bool operator==(const DurableWorker&) const = default;
};

struct DurableState {
  std::uint64_t epoch_counter = 0;        ///< no higher number was ever sent to anybody
  std::uint64_t incarnation_counter = 0;  ///< no higher number was ever given to a worker
  std::uint64_t operation_counter = 0;
  std::uint32_t router_counter = 0;  ///< above the id of every router that ever connected
  /// What routers were sent last; nullopt before the first.
  std::optional<EpochView> published;
  /// Where experts live when nobody is lost; the view's placement may have more owners, those that
  /// stand in. Layers as in the checkpoint once something is published.
  Placement steady;
  std::vector<DurableWorker> workers;  ///< by id; only those of which there is something to say
  std::vector<DurableOperation> operations;  ///< the last 256 that ended, then running and queued
  bool operator==(const DurableState&) const = default;
};

}  // namespace moiety::coordinator
