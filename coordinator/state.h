#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/durable.h"
#include "coordinator/events.h"
#include "coordinator/observed_load.h"
#include "coordinator/status.h"
#include "planner/place.h"

namespace moiety::coordinator {

struct ClusterConfig {
  planner::ModelShape model;
  std::string served_name;
  std::string coordinator_instance;  ///< tells restarts of the coordinator apart
  std::string token;                 ///< that every peer must give
  std::uint32_t max_workers = 4;     ///< ids 0 .. max_workers - 1
  /// Somebody else starts the workers: they join by their Hello, are placed on only while they are
  /// connected, idle when nobody needs them, and are never started, stopped or killed from here.
  bool static_fleet = false;
  std::int32_t capacity_per_layer = 0;  ///< experts of a layer on a worker; 0: bytes limit it
  /// Of a worker whose Hello says none; 0: capacity_per_layer alone limits it.
  std::uint64_t capacity_bytes = 0;
  /// What a worker may hold above its capacity, as a share of it, while experts move or while it
  /// stands in for a lost worker.
  double move_headroom = 0.25;
  std::int32_t replicas = 1;     ///< copies of each needed expert, as far as there is room
  std::int32_t eplb_groups = 1;  ///< as in PlaceOptions
  std::int32_t eplb_nodes = 1;
  planner::PlacementPolicy policy = planner::PlacementPolicy::kMembership;
  /// Of experts that each router holds itself. In effect from the next change on.
  std::uint64_t router_expert_bytes = 0;
  bool restart_workers = true;
  std::uint64_t first_incarnation = 1;        ///< above all that an earlier coordinator used
  std::chrono::milliseconds lease_ttl{3000};  ///< heartbeats every third of it
  /// How long after a restart of the coordinator peers may take to come back. Until then nobody is
  /// missed and nothing is dropped. Above the longest back-off of a peer's connection attempts.
  std::chrono::milliseconds reconnect_grace{5000};
  std::chrono::milliseconds start_timeout{60000};       ///< from a process's start to its Hello
  std::chrono::milliseconds operation_timeout{120000};  ///< also of one LoadExperts
  std::chrono::milliseconds drain_timeout{
      660000};  ///< for an undeploy's running requests to finish
  std::chrono::milliseconds shutdown_grace{15000};  ///< for routers to drain
  std::chrono::milliseconds stop_timeout{
      15000};  ///< for workers to end; above the fleet's own grace
  std::chrono::milliseconds first_backoff{200};  ///< before a restart, where not at once; doubles
  std::chrono::milliseconds max_backoff{5000};
  std::size_t max_queued_operations = 16;
};

/// Whether the checkpoint has this routed expert.
bool is_in_model(const planner::ModelShape& model, ExpertId id);

/// The coordinator's mind: who is alive, what is deployed, which epoch is published, what to do
/// next.
///
/// A pure state machine: no I/O, no clock of its own, no threads. handle() takes one event and
/// gives the actions that it calls for, in order; equal sequences of (event, now) give equal
/// actions.
///
/// It works by comparing what is with what should be. Each worker should hold the experts that some
/// router may still use (every epoch from the oldest that a router has not left), those of the
/// epoch being prepared, those to return to if that fails, and those it stands in for; a worker
/// that should hold none is stopped, or idles in a static fleet. From this follow
/// make-before-break, restarts and rollback.
///
/// Invariants:
///   - What must survive a crash is given out (Persist) before any action that makes it visible.
///   - A published epoch names the endpoint of a worker only if that incarnation confirmed every
///     expert that the epoch places on it.
///   - An expert is dropped, and a worker stopped, only when no router may use an epoch that needs
///     it.
///   - A worker is told to hold no more than its capacity and the headroom.
///   - Epoch numbers of published views only increase, also over restarts of the coordinator. A
///     number may be skipped.
///   - One operation at a time; each step of it is bounded by operation_timeout, plus drain_timeout
///     for an undeploy's requests to finish, and undone when it fails.
///   - A worker id is started again only after its former process has ended.
class ClusterState {
 public:
  /// With what an earlier one persisted last, it goes on from there: peers are expected to come
  /// back within reconnect_grace, operations that ran are taken up again. kFailedPrecondition is
  /// check_restorable's; restoring what that refuses aborts.
  ClusterState(ClusterConfig config,
               Clock::time_point now,
               std::optional<DurableState> durable = std::nullopt);

  /// Whether `durable` is of this checkpoint and fleet: kFailedPrecondition says what differs.
  static Result<void> check_restorable(const ClusterConfig& config, const DurableState& durable);

  [[nodiscard]] std::vector<Action> handle(const Event& event, Clock::time_point now);

  ClusterStatus status(Clock::time_point now) const;
  /// An operation that is queued, runs, or was one of the last 256 to end.
  std::optional<OperationStatus> operation(const OperationId& id) const;
  /// The view that routers were sent last; null before the first.
  const EpochView* published() const { return history_.empty() ? nullptr : &history_.back(); }
  /// What a Persist would hold now.
  DurableState durable() const;

 private:
  using Experts = std::vector<ExpertId>;  // ascending
  /// A change gives up when it had to be planned anew this often.
  static constexpr int kMaxPlansDropped = 8;

  struct Suspicion {
    RouterId router;
    Clock::time_point since;
    std::string report;
    std::optional<std::uint64_t> dispatches;  // by the first heartbeat after it
  };

  /// Another process that asks, again and again, for the id of one that is connected.
  struct Contender {
    Clock::time_point since;
    Clock::time_point last_asked;
  };
  /// By incarnation and pid.
  using Contenders = std::map<std::pair<std::uint64_t, std::int64_t>, Contender>;

  struct Worker {
    enum class Process : std::uint8_t { kNone, kRunning, kStopping, kKilled };
    Process process = Process::kNone;  // in a static fleet kRunning means: let in
    std::uint64_t incarnation = 0;
    ProcessIdentity identity;
    Clock::time_point started;
    bool expected = false;  // restored, not back yet; taken to hold what was published
    std::optional<ConnectionId> connection;
    proto::Hello hello;
    proto::WorkerStats stats;
    Clock::time_point last_heard;
    Experts may_hold;  // all that it may hold, by what it said and was told
    Experts resident;  // what it confirmed to hold
    Experts load_set;  // of the last LoadExperts on this connection
    Epoch load_epoch;  // of the last LoadExperts on this connection
    Clock::time_point load_sent;
    bool loading = false;
    bool load_is_late = false;        // and the log says so
    Clock::time_point load_again_at;  // after a failed load
    std::optional<Suspicion> suspicion;
    Contenders contenders;
    bool stats_due = false;  // what it holds changed and no heartbeat has said so yet
    bool retired = false;    // by a drain
    bool lost = false;       // ended against our will and not back yet
    bool parked = false;     // lost and not started again before the next change
    Clock::time_point restart_at;
    std::chrono::milliseconds backoff{0};
    std::vector<Clock::time_point> recent_losses;
    int failures = 0;  // ends in a row without having been ready
    std::uint64_t losses = 0;
    std::string last_loss;
  };

  struct Router {
    std::optional<ConnectionId> connection;  // empty: closed; it may come back until `gone_at`
    Clock::time_point gone_at;
    Contenders contenders;
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

  using Kind = OperationKind;
  struct Operation : DurableOperation {
    std::vector<RequestId> requests;  // calls to answer when it has ended
    bool resumed = false;             // it ran when an earlier coordinator ended
    // A client asked for a rebalance. Not durable: what was observed is lost with it.
    bool follows_load = false;
  };

  enum class Phase : std::uint8_t {
    kDraining,    // undeploy: running requests finish
    kGathering,   // before planning: routers leave older placements; static start: workers join
    kLoading,     // workers start and read what the target adds
    kActivating,  // published; routers switch; with more steps then kLoading again
    kSettling,    // workers report what they hold now; undeploy, drain: and those not needed end
  };
  struct Change {
    Operation operation;
    Phase phase = Phase::kGathering;
    Clock::time_point deadline;
    Clock::time_point settle_deadline;
    std::vector<Deployment> wanted;  // what is served in the end
    Generation saved;                // to return to: what the last finished step published
    Generation target;               // of this step, from kLoading on
    std::deque<Generation> rest;     // the steps after it
    std::size_t num_steps = 0;
    std::size_t steps_done = 0;   // each keeps what is deployed, and is not gone back behind
    bool retired_before = false;  // drain: to return to
    Epoch epoch;  // kLoading: reserved; kDraining, kActivating: what routers must confirm
    planner::MoveCost cost;
    std::string plan_error;        // of the last attempt to plan
    int plans_dropped = 0;         // because workers came or went
    std::optional<Error> failure;  // set where it happens, acted upon in advance_change()
  };

  // state.cc: time, requests, the end
  void on(const Tick& event);
  void on(const StartRequest& event);
  void on(const DeployRequest& event);
  void on(const UndeployRequest& event);
  void on(const DrainRequest& event);
  void on(const UndrainRequest& event);
  void on(const RebalanceRequest& event);
  void on(const ShutdownRequest& event);
  void request(const ChangeRequest& call, Operation operation);
  /// Answers a call that names an operation we know; false when we do not.
  bool answer_known(const ChangeRequest& call, const Operation& operation);
  void advance_shutdown();

  // peers.cc: who may connect, what peers say
  void on(const PeerHello& event);
  void on(const PeerMessage& event);
  void on(const PeerClosed& event);
  void on(const ProcessStarted& event);
  void on(const ProcessExited& event);
  void refuse(ConnectionId connection, Error error);
  void welcome(ConnectionId connection, std::uint32_t id);
  void welcome_worker(const PeerHello& event);
  /// The id of a worker of a static fleet that gave none; nullopt: all are taken.
  std::optional<WorkerId> free_worker_id(const proto::Hello& hello) const;
  void welcome_router(const PeerHello& event);
  /// What a process hears that asks for the id of another one, `who`, which is connected and was
  /// heard at `last_heard`. kUnavailable: it may be the successor of one whose end nobody saw (its
  /// host vanished), so it asks again until the connection or the lease has ended. kAlreadyExists:
  /// the other one has been heard since, so two were given one id. Whoever asks after that, or
  /// after a pause, may be a successor again.
  Error id_is_taken(const std::string& who,
                    Clock::time_point last_heard,
                    Contenders& contenders,
                    const proto::Hello& hello) const;
  void on_worker_message(WorkerId id, const proto::ControlMessage& message);
  void on_router_message(RouterId id, const proto::ControlMessage& message);
  /// Its connection is gone; it may serve on and come back.
  void router_left(RouterId id, const std::string& why);
  void router_has_problem(RouterId id, const proto::EpochActive& report);
  /// The only router is believed. One of several may have lost its own way to the worker: it is
  /// believed when another says so too, or the worker's heartbeats are late, or show for a lease
  /// that it computes nothing.
  void suspect(RouterId router, WorkerId worker, std::uint64_t incarnation, const std::string& why);
  void look_into_suspicion(WorkerId id);
  bool heartbeat_is_late(const Worker& peer) const;
  /// Whether any router said in its last heartbeat that requests run or wait there.
  bool requests_run() const;

  // durable.cc
  void restore(DurableState durable);
  void persist();

  // workers.cc: what workers should hold and whether they live
  void reconcile();
  void supervise_workers();
  void supervise(WorkerId id, const Experts& needed);
  void start_worker(WorkerId id, std::size_t num_experts);
  void request_load(WorkerId id, const Experts& needed);
  void drop_others(WorkerId id, const Experts& needed);
  /// Closes its connection and clears all that belongs to one incarnation.
  void forget(Worker& gone);
  void lose_worker(WorkerId id, const std::string& why);
  void lose_for_change(WorkerId id, const std::string& why);
  void check_worker_deadlines();
  std::vector<Experts> needed_experts() const;
  bool holds(WorkerId id, const Experts& experts) const;
  /// It lives and may be used now.
  bool serves(WorkerId id) const;
  /// It may be placed on.
  bool usable(WorkerId id) const;
  /// Every router is known and uses only epochs of history_.
  bool usage_known() const;
  std::uint64_t capacity_of(WorkerId id) const;  // bytes; 0: no limit
  std::uint64_t limit_of(WorkerId id) const;     // capacity and headroom
  std::uint64_t bytes_of(const Experts& experts) const;

  // stand_ins.cc
  void choose_stand_ins();
  void drop_stand_ins(WorkerId id);
  /// True once for each change of who is there that calls for it.
  bool rebalance_due();

  // view.cc: what routers are told
  Placement effective_placement() const;
  std::map<ExpertId, WorkerId> resident_stand_ins() const;
  /// By worker id.
  std::vector<Experts> placed_experts(const Placement& placement) const;
  std::vector<WorkerEndpoint> endpoints(const Placement& placement) const;
  void prune_history();
  void refresh_view();
  void publish(Epoch reserved, const std::string& why);

  // change.cc: operations
  void advance_change();
  void begin(Operation operation);
  Result<void> begin_adding();
  Result<void> begin_removing();
  Result<void> begin_retiring();
  void begin_activating();
  Result<void> plan();
  Result<std::vector<Placement>> steps_to(const Placement& target) const;
  bool step_fits(const Placement& next) const;
  void begin_step();
  void call_back(const Placement& placement);
  void activated();
  /// Routers were sent the last step of the change.
  bool published_in_full() const;
  void roll_back(Error error);
  void finish(Operation operation, std::optional<Error> error, const Change* change);
  bool routers_confirmed(Epoch epoch) const;
  std::uint64_t still_running(const std::string& deployment, Epoch since) const;
  std::optional<std::string> gather_pending() const;
  std::optional<std::string> load_pending() const;
  std::optional<std::string> settle_pending() const;
  std::string waiting_for() const;
  std::string describe_change(const Operation& operation) const;

  // status.cc
  OperationStatus describe(const DurableOperation& operation) const;
  WorkerStatus describe_worker(WorkerId id) const;
  DeploymentStatus describe_deployment(const Deployment& deployment, bool pending) const;
  std::vector<GroupStatus> describe_groups() const;
  bool comes_back(WorkerId id) const;
  bool is_missed(WorkerId id) const;
  void count_missing(ClusterStatus& status) const;
  std::string why_not_ready(std::uint64_t experts_missing) const;

  Worker& worker(WorkerId id) { return workers_[id.value]; }
  const Worker& worker(WorkerId id) const { return workers_[id.value]; }
  void act(Action action);
  void note(LogLevel level, std::string text) { act(Log{level, std::move(text)}); }
  std::string display_name(std::string_view deployment) const {
    return served_as(config_.served_name, deployment);
  }

  ClusterConfig config_;  // as given, always
  Clock::time_point now_;
  Clock::time_point last_tick_;
  std::vector<Action> actions_;  // of the event being handled
  bool dirty_ = false;           // something changed that reconcile() must look at

  std::vector<Worker> workers_;  // by id
  std::map<RouterId, Router> routers_;
  ObservedLoad load_;
  std::map<ConnectionId, WorkerId> worker_connections_;
  std::map<ConnectionId, RouterId> router_connections_;

  Generation current_;              // what the last published view serves when nobody is lost
  std::vector<EpochView> history_;  // views that a router may use, oldest first; back() = published
  std::map<ExpertId, WorkerId> stand_ins_;            // for experts of which no owner serves
  std::map<ExpertId, WorkerId> published_stand_ins_;  // those in history_.back()
  std::map<WorkerId, Clock::time_point> no_stand_in_before_;  // after a failed load
  std::uint64_t stand_ins_looked_at_ = 0;  // worker_losses_ when it was last said what is lacking
  std::uint64_t epoch_counter_ = 0;        // last number that was reserved
  std::uint64_t incarnation_counter_ = 0;
  std::uint64_t operation_counter_ = 0;
  std::uint32_t router_counter_ = 0;  // above the id of every router that ever connected

  std::optional<Change> change_;
  std::deque<Operation> queue_;
  std::deque<DurableOperation> ended_;  // the last 256

  bool durable_changed_ = false;
  std::shared_ptr<const DurableState> persisted_;
  bool restored_ = false;
  Clock::time_point peers_back_at_;  // until then peers of an earlier coordinator may come back
  std::uint64_t fleet_version_ = 0;  // static: changes with who is there
  std::uint64_t rebalanced_version_ = 0;
  Clock::time_point fleet_changed_at_;

  bool shutting_down_ = false;
  bool exited_ = false;
  Clock::time_point routers_deadline_;
  std::optional<Clock::time_point> workers_deadline_;

  std::map<std::pair<OperationKind, bool>, std::uint64_t> operations_ended_;
  planner::MoveCost moved_;
  std::uint64_t epoch_changes_ = 0;
  std::uint64_t worker_losses_ = 0;
  std::uint64_t worker_restarts_ = 0;
};

}  // namespace moiety::coordinator
