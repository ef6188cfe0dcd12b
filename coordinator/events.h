#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "common/ids.h"
#include "common/log.h"
#include "common/placement.h"
#include "common/result.h"
#include "coordinator/durable.h"
#include "proto/channel.h"
#include "proto/control.h"

/// What happens to the coordinator and what it does about it: the two ends of ClusterState.
namespace moiety::coordinator {

using proto::ConnectionId;
/// One call for a change, numbered by the one who hands it in; several may name one operation.
using RequestId = Id<struct RequestTag, std::uint64_t>;

// Events.

/// Time passed. Expected every 50 ms or so; every deadline is looked at only then.
struct Tick {};

struct PeerHello {
  ConnectionId connection;
  proto::Hello hello;
  std::string remote_address;
};
struct PeerMessage {
  ConnectionId connection;
  proto::ControlMessage message;
};
/// Exactly once after each PeerHello, whoever closed.
struct PeerClosed {
  ConnectionId connection;
  std::string reason;
};

/// What StartWorker started; before any event of that process.
struct ProcessStarted {
  WorkerId worker;
  std::uint64_t incarnation = 0;
  ProcessIdentity process;
};
/// A worker process ended, or could not be started at all, or (after a restart of the coordinator)
/// is not there any more.
struct ProcessExited {
  WorkerId worker;
  std::uint64_t incarnation = 0;
  std::string how;  ///< "exit status 1", "signal 9"
};

/// What all calls for a change have.
///
/// The same operation id again is the same operation: it is not executed a second time, and the
/// call is answered as the first one was or will be, also after a restart of the coordinator (for
/// the last 256 operations). kAlreadyExists: the id was used for another change.
struct ChangeRequest {
  RequestId request;
  OperationId operation;  ///< empty: the state machine makes one
  /// The epoch that the caller decided by. kStaleEpoch: another one is published, or a change runs
  /// or waits. Not looked at when the operation is known.
  std::optional<Epoch> expected_epoch;
};

/// The deployments that the cluster begins with, placed as one. Once, before any other request. A
/// cluster that was restored has its deployments: then it succeeds at once and changes nothing.
struct StartRequest : ChangeRequest {
  std::vector<Deployment> deployments;
};
struct DeployRequest : ChangeRequest {
  Deployment deployment;
};
struct UndeployRequest : ChangeRequest {
  std::string name;  ///< "" for the full model
};
/// Moves a worker's experts elsewhere, ends it and does not use it again. kResourceExhausted names
/// the bytes that the others lack. kNotFound: no such worker.
struct DrainRequest : ChangeRequest {
  WorkerId worker;
};
/// Takes a drain back.
struct UndrainRequest : ChangeRequest {
  WorkerId worker;
};
/// Places the present deployments anew over the workers that there are.
struct RebalanceRequest : ChangeRequest {};
/// Ends the cluster in order; a second one does not wait for the routers any longer.
struct ShutdownRequest {
  std::string reason;
};

using Event = std::variant<Tick,
                           PeerHello,
                           PeerMessage,
                           PeerClosed,
                           ProcessStarted,
                           ProcessExited,
                           StartRequest,
                           DeployRequest,
                           UndeployRequest,
                           DrainRequest,
                           UndrainRequest,
                           RebalanceRequest,
                           ShutdownRequest>;

// Actions.

/// Write this before any of the actions that follow is executed: they make it visible. At most one
/// per event, always the first action.
struct Persist {
  std::shared_ptr<const DurableState> state;
};

/// Answered by ProcessStarted and, sooner or later, ProcessExited.
struct StartWorker {
  WorkerId worker;
  std::uint64_t incarnation = 0;
};
/// Asks the process to end; the fleet kills it when its grace is over.
struct StopWorker {
  WorkerId worker;
  std::uint64_t incarnation = 0;
};
/// Fences the process: it must not run another instruction, also when it is stopped (SIGSTOP).
struct KillWorker {
  WorkerId worker;
  std::uint64_t incarnation = 0;
};

struct Send {
  ConnectionId connection;
  proto::ControlMessage message;
};
/// Sends what is queued, then closes.
struct CloseConnection {
  ConnectionId connection;
};

/// The change that a request asked for is known and will be made: it is durable. Then comes
/// CompleteOperation.
struct AcceptOperation {
  RequestId request;
  OperationId operation;
};
/// Exactly once for each request of a change; without AcceptOperation before it when the request
/// is refused, or the operation ended long ago.
struct CompleteOperation {
  RequestId request;
  OperationId operation;
  std::optional<Error> error;
  bool refused = false;  ///< no operation began, and none that did failed
};

/// A decision and why it was made.
struct Log {
  LogLevel level = LogLevel::kInfo;
  std::string text;
};

/// The shutdown is done: nothing of ours runs any more.
struct Exit {};

using Action = std::variant<Persist,
                            StartWorker,
                            StopWorker,
                            KillWorker,
                            Send,
                            CloseConnection,
                            AcceptOperation,
                            CompleteOperation,
                            Log,
                            Exit>;

}  // namespace moiety::coordinator
