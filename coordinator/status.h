#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/deployment_name.h"
#include "coordinator/events.h"
#include "planner/place.h"
#include "proto/control.h"

/// A picture of the cluster at one moment, for the admin API and /metrics.
namespace moiety::coordinator {

enum class WorkerState : std::uint8_t { kStarting, kLoading, kServing, kLost, kStopping };
std::string_view worker_state_name(WorkerState state);

enum class OperationState : std::uint8_t { kQueued, kRunning, kSucceeded, kFailed };
std::string_view operation_state_name(OperationState state);

struct OperationStatus {
  OperationId id;
  std::string kind;  ///< "start", "deploy", "undeploy"
  std::string name;  ///< of the deployment; "" for the full model and for a start
  OperationState state = OperationState::kQueued;
  std::string waiting_for;     ///< while it runs: what the next step needs
  std::optional<Error> error;  ///< when it failed
  Epoch epoch;                 ///< that it published; 0: none yet
  planner::MoveCost cost;
};

/// A worker that runs, should run, or is being stopped.
struct WorkerStatus {
  WorkerId id;
  WorkerState state = WorkerState::kStarting;
  std::uint64_t incarnation = 0;
  std::int64_t pid = 0;       ///< as the worker says; 0 before it connected
  std::string http_address;   ///< may be empty
  std::uint64_t experts = 0;  ///< that it confirmed to hold
  proto::WorkerStats stats;   ///< of its last heartbeat
  std::optional<std::chrono::milliseconds> lease_age;  ///< since its last message
  std::uint64_t losses = 0;                            ///< under this id
  std::string last_loss;                               ///< why, the last time; "" if never
};

struct DeploymentStatus {
  std::string name;
  std::string served_as;
  std::string state;  ///< "pending", "active", "draining"
  bool full = false;
  std::int32_t kept_min = 0;  ///< routed experts per MoE layer
  std::int32_t kept_max = 0;
  std::vector<WorkerId> workers;
  std::vector<WorkerId> lost_workers;  ///< of those, gone now
  std::uint64_t bytes = 0;             ///< of its experts
  std::uint64_t running = 0;           ///< requests, all routers together
};

struct RouterStatus {
  RouterId id;
  std::string http_address;
  std::int64_t pid = 0;
  Epoch epoch;  ///< last confirmed
  proto::RouterStats stats;
  bool connected = true;
};

/// Experts that the same deployments keep, all layers together.
struct GroupStatus {
  std::vector<std::string> members;  ///< served names; empty = cold
  std::uint64_t experts = 0;
  std::uint64_t bytes = 0;
  std::vector<WorkerId> workers;
};

struct LostWorker {
  WorkerId id;
  std::uint64_t experts = 0;
  std::vector<std::string> deployments;  ///< served names that have experts there
  std::string reason;
};

struct ClusterStatus {
  std::string served_name;
  std::string fingerprint;
  bool ready = false;  ///< an epoch is published and none of its workers is lost
  bool shutting_down = false;
  Epoch epoch;
  planner::PlacementPolicy policy = planner::PlacementPolicy::kMembership;
  std::int32_t capacity_per_layer = 0;
  std::uint32_t max_workers = 0;
  std::vector<WorkerStatus> workers;
  std::vector<DeploymentStatus> deployments;
  std::vector<RouterStatus> routers;
  std::vector<GroupStatus> groups;
  std::vector<LostWorker> lost;
  std::optional<OperationStatus> operation;  ///< the one that runs
  std::uint64_t queued_operations = 0;
  // The fleet, as the workers' heartbeats say.
  std::uint64_t workers_running = 0;
  std::uint64_t bytes_resident = 0;
  std::uint64_t experts_resident = 0;
  std::uint64_t routed_experts = 0;  ///< of the checkpoint
  std::uint64_t routed_bytes = 0;
  // Since the coordinator started.
  std::uint64_t epoch_changes = 0;
  std::uint64_t worker_losses = 0;
  std::uint64_t worker_restarts = 0;
};

}  // namespace moiety::coordinator
