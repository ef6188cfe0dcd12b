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

/// kIdle: it runs, and no deployment needs it. kAbsent: an id that nobody needs and has (shown only
/// when it is drained).
enum class WorkerState : std::uint8_t {
  kStarting,
  kLoading,
  kServing,
  kLost,
  kStopping,
  kIdle,
  kAbsent,
};
std::string_view worker_state_name(WorkerState state);

std::string_view operation_kind_name(OperationKind kind);
std::string_view operation_state_name(OperationState state);

struct OperationStatus {
  OperationId id;
  OperationKind kind = OperationKind::kStart;
  std::string name;                ///< deploy, undeploy: of the deployment, "" for the full model
  std::optional<WorkerId> worker;  ///< drain, undrain
  OperationState state = OperationState::kQueued;
  std::string waiting_for;  ///< while it runs: what the next step needs
  std::uint64_t step = 0;   ///< while it runs: of num_steps, from 1; 0: not planned yet
  std::uint64_t num_steps = 0;
  std::optional<Error> error;  ///< when it failed
  bool rolled_back = false;    ///< when it failed: everything is as it was before
  Epoch epoch;                 ///< that it published; 0: none yet
  planner::MoveCost cost;
};

/// A worker that runs, should run, or is being stopped.
struct WorkerStatus {
  WorkerId id;
  WorkerState state = WorkerState::kStarting;
  std::uint64_t incarnation = 0;
  std::int64_t pid = 0;              ///< as the worker says; 0 before it connected
  std::string http_address;          ///< may be empty
  std::uint64_t experts = 0;         ///< that it confirmed to hold
  std::uint64_t bytes = 0;           ///< of those
  std::uint64_t capacity_bytes = 0;  ///< 0: no limit in bytes
  std::uint64_t stands_in_for = 0;   ///< experts of lost workers among those
  bool drained = false;              ///< not used until undrain
  /// Share of the observed load that is its to compute as the experts are placed, owners of one
  /// expert sharing evenly; 0 before any was observed.
  double load = 0;
  proto::WorkerStats stats;                            ///< of its last heartbeat
  std::optional<std::chrono::milliseconds> lease_age;  ///< since its last message
  std::uint64_t losses = 0;                            ///< under this id
  std::string last_loss;                               ///< why, the last time; "" if never
};

struct DeploymentStatus {
  std::string name;
  std::string served_as;
  std::string state;  ///< "pending", "active", "draining"
  bool full = false;
  MissingPolicy on_missing = MissingPolicy::kWait;
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

/// An epoch that some router may use.
struct EpochStatus {
  Epoch epoch;
  std::vector<WorkerId> workers;
  std::vector<RouterId> routers;  ///< whose steps use it, as they confirmed last
};

/// Experts that the same deployments keep, all layers together.
struct GroupStatus {
  std::vector<std::string> members;  ///< served names; empty = cold
  std::uint64_t experts = 0;
  std::uint64_t bytes = 0;
  std::uint64_t copies = 0;      ///< on workers, as placed
  std::uint64_t on_routers = 0;  ///< of `experts`, those that routers hold themselves
  double load = 0;               ///< share of the observed load; 0 before any was observed
  std::vector<WorkerId> workers;
};

/// A worker of the placement that does not serve, and comes back or is missed: experts of it are on
/// no other worker that serves. One that stays away while others have all that it held is not.
struct LostWorker {
  WorkerId id;
  std::uint64_t experts = 0;
  std::vector<std::string> deployments;  ///< served names that have experts there
  std::string reason;
};

struct ClusterStatus {
  std::string served_name;
  std::string fingerprint;
  /// An epoch is published, each expert of it is on a worker that serves, and a router is connected
  /// that uses an epoch.
  bool ready = false;
  std::string not_ready;  ///< why it is not; "" when it is
  bool shutting_down = false;
  Epoch epoch;
  planner::PlacementPolicy policy = planner::PlacementPolicy::kMembership;
  std::int32_t capacity_per_layer = 0;
  std::uint32_t max_workers = 0;
  bool static_fleet = false;
  double move_headroom = 0;
  std::int32_t replicas = 1;
  std::uint64_t router_expert_bytes = 0;  ///< as configured, for each router
  std::uint64_t router_experts = 0;       ///< that every router holds, as placed
  std::uint64_t replicas_missing = 0;     ///< copies that there is no room or no worker for now
  std::uint64_t experts_missing = 0;      ///< needed, and on no worker that serves
  std::vector<EpochStatus> epochs;        ///< in use, oldest first; the last is published
  std::vector<WorkerStatus> workers;
  std::vector<DeploymentStatus> deployments;
  std::vector<RouterStatus> routers;
  std::vector<GroupStatus> groups;
  std::vector<LostWorker> lost;
  std::optional<OperationStatus> operation;  ///< the one that runs
  std::vector<OperationStatus> operations;   ///< that one, those that wait, then the latest ended
  std::uint64_t queued_operations = 0;
  // The fleet, as the workers' heartbeats say.
  std::uint64_t workers_running = 0;
  std::uint64_t bytes_resident = 0;
  std::uint64_t experts_resident = 0;
  std::uint64_t routed_experts = 0;  ///< of the checkpoint
  std::uint64_t routed_bytes = 0;
  // Since the coordinator started.
  /// By kind and whether they succeeded, whoever asked for them, each once.
  std::map<std::pair<OperationKind, bool>, std::uint64_t> operations_ended;
  planner::MoveCost moved;  ///< by those that succeeded, as planned
  std::uint64_t epoch_changes = 0;
  std::uint64_t worker_losses = 0;
  std::uint64_t worker_restarts = 0;
};

}  // namespace moiety::coordinator
