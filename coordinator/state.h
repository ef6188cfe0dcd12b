#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/events.h"
#include "coordinator/status.h"
#include "planner/place.h"

namespace moiety::coordinator {

struct ClusterConfig {
  planner::ModelShape model;
  std::string served_name;
  std::string coordinator_instance;  ///< tells restarts of the coordinator apart
  std::string token;                 ///< that every peer must give
  std::uint32_t max_workers = 4;     ///< ids 0 .. max_workers - 1
  std::int32_t capacity_per_layer = 0;
  planner::PlacementPolicy policy = planner::PlacementPolicy::kMembership;
  bool restart_workers = true;
  std::uint64_t first_incarnation = 1;             ///< above all that an earlier coordinator used
  std::chrono::milliseconds lease_ttl{3000};       ///< heartbeats every third of it
  std::chrono::milliseconds start_timeout{60000};  ///< from a process's start to its Hello
  std::chrono::milliseconds operation_timeout{120000};  ///< also of one LoadExperts
  std::chrono::milliseconds drain_timeout{
      660000};  ///< for an undeploy's running requests to finish
  std::chrono::milliseconds shutdown_grace{15000};  ///< for routers to drain
  std::chrono::milliseconds stop_timeout{
      15000};  ///< for workers to end; above the fleet's own grace
  std::chrono::milliseconds first_backoff{200};  ///< before a restart; doubles
  std::chrono::milliseconds max_backoff{5000};
  std::size_t max_queued_operations = 16;
};

/// The coordinator's mind: who is alive, what is deployed, which epoch is published, what to do
/// next.
///
/// A pure state machine: no I/O, no clock of its own, no threads. handle() takes one event and
/// gives the actions that it calls for, in order; equal sequences of (event, now) give equal
/// actions.
///
/// It works by comparing what is with what should be. Each worker should hold the experts that some
/// router may still use (every epoch from the oldest that a router has not left), those of the
/// epoch being prepared, and those to return to if that fails; a worker that should hold none is
/// stopped. From this follow make-before-break, restarts and rollback.
///
/// Invariants:
///   - A published epoch names the endpoint of a worker only if that incarnation confirmed every
///   expert
///     that the epoch places on it.
///   - An expert is dropped, and a worker stopped, only when no router may use an epoch that needs
///   it.
///   - Epoch numbers of published views only increase. A number may be skipped.
///   - One operation at a time; each is bounded by operation_timeout, plus drain_timeout for an
///     undeploy's requests to finish, and undone when it fails.
///   - A worker id is started again only after its former process has ended.
class ClusterState {
 public:
  ClusterState(ClusterConfig config, Clock::time_point now);

  [[nodiscard]] std::vector<Action> handle(const Event& event, Clock::time_point now);

  ClusterStatus status(Clock::time_point now) const;
  /// An operation that is queued, runs, or was one of the last 64 to end.
  std::optional<OperationStatus> operation(OperationId id) const;
  /// The view that routers were sent last; null before the first.
  const EpochView* published() const { return history_.empty() ? nullptr : &history_.back(); }

 private:
  using Experts = std::vector<ExpertId>;  // ascending

  struct Worker {
    enum class Process : std::uint8_t { kNone, kRunning, kStopping, kKilled };
    Process process = Process::kNone;
    std::uint64_t incarnation = 0;
    Clock::time_point started;
    std::optional<ConnectionId> connection;
    proto::Hello hello;
    proto::WorkerStats stats;
    Clock::time_point last_heard;
    Experts requested;  // named by LoadExperts and not dropped since: what it may hold
    Experts resident;   // what it confirmed to hold
    Epoch load_epoch;   // of the last LoadExperts on this connection
    Clock::time_point load_sent;
    bool loading = false;
    bool stats_due = false;  // what it holds changed and no heartbeat has said so yet
    bool lost = false;       // ended against our will and not back yet
    bool parked = false;     // lost and not started again before the next change
    Clock::time_point restart_at;
    std::chrono::milliseconds backoff{0};
    Clock::time_point ready_since;
    int failures = 0;  // ends in a row without having been ready
    std::uint64_t losses = 0;
    std::string last_loss;
  };

  struct Router {
    std::optional<ConnectionId> connection;  // empty: closed; it may come back until `gone_at`
    Clock::time_point gone_at;
    proto::Hello hello;
    Epoch oldest;  // it may use this epoch and later ones; 0 = none was sent
    Epoch active;  // the last that it confirmed
    proto::RouterStats stats;
    Clock::time_point last_heard;
  };

  /// What is deployed and where.
  struct Generation {
    std::vector<Deployment> deployments;
    Placement placement;
  };

  enum class Kind : std::uint8_t { kStart, kDeploy, kUndeploy };
  struct Operation {
    OperationId id;
    Kind kind = Kind::kStart;
    std::string name;
    std::vector<Deployment> deployments;  // to add
  };

  enum class Phase : std::uint8_t {
    kDraining,    // undeploy: running requests finish
    kLoading,     // workers start and read what the target adds
    kActivating,  // published; routers switch
    kSettling,    // workers report what they hold now; undeploy: and those not needed end
  };
  struct Change {
    Operation operation;
    Phase phase = Phase::kLoading;
    Clock::time_point deadline;
    Clock::time_point settle_deadline;
    Generation saved;   // to return to
    Generation target;  // from kLoading on
    Epoch epoch;        // kLoading: reserved; kDraining, kActivating: what routers must confirm
    planner::MoveCost cost;
    std::optional<Error> failure;  // set where it happens, acted upon in advance_change()
  };

  // state.cc: events
  void on(const Tick& event);
  void on(const PeerHello& event);
  void on(const PeerMessage& event);
  void on(const PeerClosed& event);
  void on(const ProcessExited& event);
  void on(const StartRequest& event);
  void on(const DeployRequest& event);
  void on(const UndeployRequest& event);
  void on(const ShutdownRequest& event);
  void refuse(ConnectionId connection, Error error);
  void welcome(ConnectionId connection, std::uint32_t id);
  void welcome_worker(const PeerHello& event);
  void welcome_router(const PeerHello& event);
  void on_worker_message(WorkerId id, const proto::ControlMessage& message);
  void on_router_message(RouterId id, const proto::ControlMessage& message);
  void suspect(RouterId router, WorkerId worker, std::uint64_t incarnation, const std::string& why);
  void enqueue(Operation operation);

  // workers.cc: what workers should hold and whether they live
  void reconcile();
  void supervise_workers();
  void request_load(WorkerId id, const Experts& needed);
  /// Closes its connection and clears all that belongs to one incarnation.
  void forget(Worker& gone);
  void lose_worker(WorkerId id, const std::string& why);
  void check_worker_deadlines();
  std::vector<Experts> needed_experts() const;
  bool holds(WorkerId id, const Experts& experts) const;
  std::vector<WorkerEndpoint> endpoints(const Placement& placement) const;
  void prune_history();
  void refresh_view();
  void publish(Epoch reserved, const std::string& why);
  void advance_shutdown();

  // change.cc: operations
  void advance_change();
  void begin(Operation operation);
  Result<void> begin_adding(const Operation& operation);
  Result<void> begin_removing(const Operation& operation);
  Result<void> plan(std::vector<Deployment> deployments);
  void roll_back(Error error);
  void finish(const Operation& operation, std::optional<Error> error, const Change* change);
  bool routers_confirmed(Epoch epoch) const;
  std::uint64_t still_running(const std::string& deployment, Epoch since) const;
  std::optional<std::string> load_pending() const;
  std::optional<std::string> settle_pending() const;
  std::string waiting_for() const;

  // status.cc
  OperationStatus describe(const Operation& operation, OperationState state) const;
  WorkerStatus describe_worker(WorkerId id) const;
  DeploymentStatus describe_deployment(const Deployment& deployment, bool pending) const;
  std::vector<GroupStatus> describe_groups() const;

  Worker& worker(WorkerId id) { return workers_[id.value]; }
  const Worker& worker(WorkerId id) const { return workers_[id.value]; }
  void act(Action action) { actions_.push_back(std::move(action)); }
  void note(LogLevel level, std::string text) { act(Log{level, std::move(text)}); }
  std::string display_name(std::string_view deployment) const {
    return served_as(config_.served_name, deployment);
  }

  const ClusterConfig config_;
  Clock::time_point now_;
  Clock::time_point last_tick_;
  std::vector<Action> actions_;  // of the event being handled
  bool dirty_ = false;           // something changed that reconcile() must look at

  std::vector<Worker> workers_;  // by id
  std::map<RouterId, Router> routers_;
  std::map<ConnectionId, WorkerId> worker_connections_;
  std::map<ConnectionId, RouterId> router_connections_;

  Generation current_;              // what the last published view serves
  std::vector<EpochView> history_;  // views that a router may use, oldest first; back() = published
  std::uint64_t epoch_counter_ = 0;  // last number that was reserved
  std::uint64_t incarnation_counter_ = 0;

  std::optional<Change> change_;
  std::deque<Operation> queue_;
  std::deque<OperationStatus> ended_;  // the last 64

  bool shutting_down_ = false;
  bool exited_ = false;
  Clock::time_point routers_deadline_;
  std::optional<Clock::time_point> workers_deadline_;

  std::uint64_t epoch_changes_ = 0;
  std::uint64_t worker_losses_ = 0;
  std::uint64_t worker_restarts_ = 0;
};

}  // namespace moiety::coordinator
