#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "common/ids.h"
#include "common/log.h"
#include "common/placement.h"
#include "common/result.h"
#include "proto/channel.h"
#include "proto/control.h"

/// What happens to the coordinator and what it does about it: the two ends of ClusterState.
namespace moiety::coordinator {

using proto::ConnectionId;
/// One start, deploy or undeploy, numbered by the one who asks for it.
using OperationId = Id<struct OperationTag, std::uint64_t>;

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

/// A worker process ended, or could not be started at all.
struct ProcessExited {
  WorkerId worker;
  std::uint64_t incarnation = 0;
  std::string how;  ///< "exit status 1", "signal 9"
};

/// The deployments that the cluster begins with, placed as one. Once, before any other request.
struct StartRequest {
  OperationId operation;
  std::vector<Deployment> deployments;
};
struct DeployRequest {
  OperationId operation;
  Deployment deployment;
};
struct UndeployRequest {
  OperationId operation;
  std::string name;  ///< "" for the full model
};
/// Ends the cluster in order; a second one does not wait for the routers any longer.
struct ShutdownRequest {
  std::string reason;
};

using Event = std::variant<Tick,
                           PeerHello,
                           PeerMessage,
                           PeerClosed,
                           ProcessExited,
                           StartRequest,
                           DeployRequest,
                           UndeployRequest,
                           ShutdownRequest>;

// Actions.

/// Answered by ProcessExited, sooner or later.
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

/// Exactly once for each StartRequest, DeployRequest and UndeployRequest.
struct CompleteOperation {
  OperationId operation;
  std::optional<Error> error;
};

/// A decision and why it was made.
struct Log {
  LogLevel level = LogLevel::kInfo;
  std::string text;
};

/// The shutdown is done: nothing of ours runs any more.
struct Exit {};

using Action = std::variant<StartWorker,
                            StopWorker,
                            KillWorker,
                            Send,
                            CloseConnection,
                            CompleteOperation,
                            Log,
                            Exit>;

}  // namespace moiety::coordinator
