#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "coordinator/state.h"

namespace moiety::coordinator {

/// What stands behind the processes and routers of a Simulation. All calls are of its thread.
class Peers {
 public:
  virtual ~Peers() = default;
  /// A worker process begins; gives the address of its lane.
  virtual std::string begin(WorkerId id, std::uint64_t incarnation) = 0;
  virtual void end(WorkerId id) = 0;
  virtual Result<void> load(WorkerId id, const std::vector<ExpertId>& experts) = 0;
  virtual void keep_only(WorkerId id, const std::vector<ExpertId>& experts) = 0;
  /// Lane messages that it has answered.
  virtual std::uint64_t dispatches(WorkerId id) const = 0;
  /// A router hears its id, with every Welcome.
  virtual void welcome(int router, RouterId id) = 0;
  /// Hands a router a view. Simulation::confirm() says when its steps use it.
  virtual void apply(int router, const EpochView& view) = 0;
  virtual proto::RouterStats stats(int router) const = 0;
};

/// A cluster around a ClusterState, with a clock that tests move. Without Peers, workers and
/// routers are pretended: loads succeed at once, and a router uses a view as soon as it is told.
///
/// Messages wait in queues, one per direction and peer, until something moves them: run() moves
/// all, a fuzzer moves one at a time. Every action is checked against the invariants that state.h
/// promises; a violation is a test failure that prints the trace.
class Simulation {
 public:
  struct Process {
    std::uint64_t incarnation = 0;
    bool asked_to_stop = false;
    bool killed = false;
    bool frozen = false;               // SIGSTOP: does nothing, but SIGKILL works
    bool crashing = false;             // ends before it connects
    bool refused = false;              // the coordinator turned it away: it ends
    std::uint64_t capacity_bytes = 0;  // that its Hello says
    std::uint64_t dispatches = 0;      // that its heartbeats say
    std::string lane_address;          // that its Hello says; empty: a made-up one
    std::optional<ConnectionId> connection;
    std::set<ExpertId> resident;
    std::deque<proto::ControlMessage> inbox, outbox;
  };
  /// The processes that take turns in one place, with the same --id if that has one.
  struct Router {
    RouterId id;  // that it was started with, or was given
    bool has_id_of_its_own = true;
    bool welcomed = false;  // this process knows its id
    std::uint64_t incarnation = 0;
    std::int64_t pid = 0;
    std::optional<ConnectionId> connection;
    bool dead = false;     // the process has ended and no other one has begun
    bool frozen = false;   // does nothing
    bool cut_off = false;  // from the coordinator: nothing comes through, and neither side knows
    bool confirms = true;  // answers PublishEpoch
    bool told_to_end = false;
    bool lost_lease = false;        // this process has been forgotten, and lives
    Clock::time_point kept_until;   // without a connection: what it uses is kept until then
    std::vector<EpochView> usable;  // the active view, if any, then those it may switch to
    Epoch active;
    std::map<std::string, std::uint64_t> running;
    std::deque<proto::ControlMessage> inbox, outbox;
  };

  /// `peers` may be null and outlives the simulation otherwise.
  explicit Simulation(ClusterConfig config, Peers* peers = nullptr);

  // What tests do. Each change gets an id of its own, and is asked for again after crash().
  OperationId start(std::vector<Deployment> deployments);
  OperationId deploy(Deployment deployment);
  OperationId undeploy(const std::string& name);
  OperationId drain(WorkerId worker);
  OperationId undrain(WorkerId worker);
  OperationId rebalance();
  /// Calls with all fields as given; the answer is in `answers`.
  template <class Request>
  RequestId call(Request request) {
    request.request = RequestId{++requests_};
    event(request);
    return request.request;
  }
  void event(const Event& event);
  /// A worker of a static fleet appears.
  void join(WorkerId id, std::uint64_t capacity_bytes = 0);
  /// kill -9 of the coordinator, and a new one that knows what the last Persist said. Connections
  /// are gone; workers and routers connect again, clients ask again.
  void crash_coordinator();
  /// The next event's actions are executed up to this many only, then the coordinator crashes.
  void crash_within_next_event(std::size_t actions) { crash_after_ = actions; }
  /// A router connects; gives its key in `routers`. Without an id, that is its key.
  int add_router(std::optional<std::uint32_t> id = std::nullopt);
  /// One that the coordinator gives an id.
  int add_router_without_id();
  /// kill -9 of a router. Unseen (its host vanished), the coordinator hears nothing of its end.
  void kill_router(int key, bool unseen = false);
  /// Another process takes the place of one that was killed.
  void start_router(int key);
  void reconnect_router(int key);
  void close_router(int key);
  void heartbeat_router(int key);
  /// The router's steps use this epoch and no older one. Told the coordinator, if it is connected.
  void confirm(int key, Epoch epoch, std::vector<WorkerId> lost = {});
  void freeze(WorkerId id) { processes.at(id).frozen = true; }
  void kill_process(WorkerId id);      // ProcessExited before the connection's end
  void break_connection(WorkerId id);  // the process lives on
  /// A process ends while no coordinator runs: whoever comes next finds it gone.
  void end_unseen(WorkerId id) { take_process(id); }
  /// Sends a Hello as nobody in particular; gives the refusal's text, or "" when it is welcome.
  std::string knock(proto::Hello hello);
  /// The same; gives the refusal's code.
  std::optional<ErrorCode> knock_code(proto::Hello hello);

  /// Moves messages until none is left. No time passes.
  void run();
  /// 50 ms pass. Heartbeats are sent every 200 ms; none of them is moved, and nothing ticks.
  void pass_time();
  /// Lets time pass, moving all messages between ticks.
  void advance(std::chrono::milliseconds time);
  /// advance() until the operation is done or `limit` has passed; fails the test then.
  void finish(OperationId id, std::chrono::milliseconds limit = std::chrono::seconds(30));

  bool done(OperationId id) const { return results.contains(id); }
  bool succeeded(OperationId id) const { return done(id) && !results.at(id); }
  /// "" when it succeeded or is not done.
  std::string error(OperationId id) const;
  ClusterStatus status() const { return state.status(now); }
  std::set<WorkerId> running() const;
  std::size_t experts_resident() const;
  /// The view that the router uses now.
  const EpochView& view(int router) const { return routers.at(router).usable.front(); }
  proto::Hello hello(proto::Role role, std::uint32_t id, std::uint64_t incarnation) const;

  // Single steps, for the fuzzer; each gives whether there was something to do.
  bool step_process(WorkerId id);
  bool step_router(int key);
  bool deliver(std::deque<proto::ControlMessage>& outbox, std::optional<ConnectionId> connection);
  bool deliver_from_router(int key);
  /// Delivers one message of a router, or lets the router take one.
  bool deliver_one(int key) { return deliver_from_router(key) || step_router(key); }
  void tick();

  ClusterConfig config;
  ClusterState state;
  Clock::time_point now;
  std::map<WorkerId, Process> processes;
  std::map<int, Router> routers;
  std::map<OperationId, std::optional<Error>> results;
  std::map<RequestId, CompleteOperation> answers;
  std::set<OperationId> accepted;
  std::optional<DurableState> disk;
  std::uint64_t crashes = 0;
  std::size_t most_held = 0;         // experts that one worker was told to hold at once
  bool loads_hang = false;           // workers do not get to LoadExperts, and all else goes on
  std::optional<Error> load_error;   // workers answer LoadExperts with it
  std::optional<std::string> crash;  // new processes end with it
  bool freeze_new = false;           // new processes are stopped (SIGSTOP) at once
  bool exited = false;
  std::vector<std::string> trace;
  std::uint64_t kills = 0;

 private:
  template <class Request>
  OperationId ask(Request request);
  /// False: the coordinator crashed in the midst of them.
  bool perform(const std::vector<Action>& actions);
  void perform(const Action& action);
  void check_load(WorkerId id, const Process& process, const proto::LoadExperts& load);
  void check_publish(const EpochView& view);
  /// Nothing is known of a process that has just been let in but what it said.
  void check_new_router(const Router& router);
  /// No router may use a view that needs what this worker is about to lose.
  void check_kept(WorkerId id, std::uint64_t incarnation, const std::set<ExpertId>& kept);
  int add_router(Router router);
  void begin_process(WorkerId id, std::uint64_t incarnation);
  Process take_process(WorkerId id);
  void use_epoch(Router& router, Epoch epoch);
  void end_process(WorkerId id, const std::string& how);
  ConnectionId new_connection() { return ConnectionId{++connections_}; }
  std::string tail() const;

  Peers* const peers_;
  std::uint64_t connections_ = 0;
  std::uint64_t operations_ = 0;
  std::uint64_t requests_ = 0;
  std::map<OperationId, Event> asked_;  // changes that are not done
  std::map<RequestId, OperationId> operation_of_;
  std::deque<Event> events_;
  bool handling_ = false;
  std::optional<std::size_t> crash_after_;
  std::uint64_t static_incarnations_ = 5000;
  // What each incarnation may hold: told to load and not to drop since.
  std::map<std::pair<WorkerId, std::uint64_t>, std::set<ExpertId>> told_;
  std::int64_t pids_ = 1000;
  int router_keys_ = 0;
  std::uint64_t router_incarnations_ = 0;
  std::set<RouterId> router_ids_;  // of all that were ever welcome
  Epoch last_published_;
  // What each incarnation confirmed to the state machine and was not told to drop since.
  std::map<std::pair<WorkerId, std::uint64_t>, std::set<ExpertId>> confirmed_;
  std::map<ConnectionId, Error> refusals_;
  std::deque<ConnectionId> closing_;
};

/// `num_layers` layers of `num_routed` routed experts and a shared one, top-2.
planner::ModelShape test_model(std::int32_t num_layers = 3, std::int32_t num_routed = 16);
ClusterConfig test_config();
/// `keep` routed experts per layer, chosen at random.
Deployment random_subset(const std::string& name,
                         std::int32_t keep,
                         std::uint32_t seed,
                         const planner::ModelShape& model = test_model());
Deployment full_deployment(const planner::ModelShape& model = test_model());

}  // namespace moiety::coordinator
