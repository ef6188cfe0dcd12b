// Who may connect, and what workers and routers say.
#include <algorithm>
#include <iterator>
#include <limits>
#include <utility>

#include "common/address.h"
#include "common/secret.h"
#include "coordinator/state.h"
#include "proto/channel.h"

namespace moiety::coordinator {

namespace {

/// Ids that are assigned are above every id that a router had, so those that routers are started
/// with must leave some.
constexpr std::uint32_t kLastRouterIdOfItsOwn = 0x7fff'ffff;

/// One that is refused with kUnavailable asks again within a second; who was not heard for so long
/// has ended.
constexpr std::chrono::seconds kContenderAsks{3};
/// How many processes that ask for one id are told apart at a time.
constexpr std::size_t kMaxContenders = 8;

/// Where others reach a peer's HTTP port: one that listens on every address of its host is at the
/// address that it connected from.
std::string seen_from_here(const std::string& address, const std::string& remote) {
  const auto given = parse_address(address);
  const auto peer = parse_address(remote);
  if (!given || !peer || !is_wildcard(given->host)) return address;
  return format_address(peer->host, given->port);
}

}  // namespace

bool is_in_model(const planner::ModelShape& model, ExpertId id) {
  return id.layer >= 0 && id.expert >= 0 &&
         static_cast<std::size_t>(id.layer) < model.layers.size() &&
         id.expert < model.layers[static_cast<std::size_t>(id.layer)].num_routed;
}

void ClusterState::refuse(ConnectionId connection, Error error) {
  note(LogLevel::kWarning, "refused a connection: " + error.message);
  act(Send{connection, proto::Refuse{std::move(error)}});
  act(CloseConnection{connection});
}

void ClusterState::welcome(ConnectionId connection, std::uint32_t id) {
  proto::Welcome welcome;
  welcome.coordinator_instance = config_.coordinator_instance;
  welcome.assigned_id = id;
  welcome.lease_ttl = config_.lease_ttl;
  welcome.heartbeat_interval = config_.lease_ttl / 3;
  act(Send{connection, std::move(welcome)});
}

void ClusterState::on(const PeerHello& event) {
  const proto::Hello& hello = event.hello;
  if (!secrets_equal(hello.token, config_.token)) {
    return refuse(
        event.connection,
        fail(ErrorCode::kInvalidArgument,
             "the token is not this coordinator's (from " + event.remote_address +
                 "): set MOIETY_TOKEN to the value that the coordinator was started with"));
  }
  if (shutting_down_) {
    return refuse(event.connection,
                  fail(ErrorCode::kUnavailable, "the coordinator is shutting down"));
  }
  if (hello.fingerprint != config_.model.fingerprint) {
    return refuse(
        event.connection,
        fail(ErrorCode::kFailedPrecondition,
             "another checkpoint: the coordinator serves fingerprint " + config_.model.fingerprint +
                 ", the peer opened " + hello.fingerprint + "; start both with the same --model"));
  }
  if (hello.role == proto::Role::kAdmin) {
    return refuse(event.connection,
                  fail(ErrorCode::kInvalidArgument,
                       "only workers and routers connect here; administration is over HTTP"));
  }
  if (hello.incarnation == 0) {
    return refuse(event.connection, fail(ErrorCode::kInvalidArgument,
                                         "a worker or router must give an incarnation above 0"));
  }
  if (hello.role == proto::Role::kWorker) return welcome_worker(event);
  welcome_router(event);
}

Error ClusterState::id_is_taken(const std::string& who,
                                Clock::time_point last_heard,
                                Contenders& contenders,
                                const proto::Hello& hello) const {
  std::erase_if(contenders, [this](const auto& entry) {
    return now_ - entry.second.last_asked > kContenderAsks;
  });
  const std::pair process(hello.incarnation, hello.pid);
  // Beyond the bound the time of newcomers does not run: each that was first is told soon, or ends.
  if (contenders.size() < kMaxContenders) contenders.try_emplace(process, Contender{now_, now_});
  const auto known = contenders.find(process);
  if (known != contenders.end()) known->second.last_asked = now_;
  // What was under way when a host vanished may arrive later, but not a heartbeat of its own time.
  if (known != contenders.end() && last_heard > known->second.since + config_.lease_ttl / 3) {
    contenders.erase(known);
    return fail(ErrorCode::kAlreadyExists,
                fmt::format("{} is already connected, and its heartbeats come: two processes were "
                            "given one id; give this one another --id, or none",
                            who));
  }
  const auto silent =
      std::chrono::duration_cast<std::chrono::milliseconds>(now_ - last_heard).count();
  return fail(ErrorCode::kUnavailable,
              fmt::format("{} is already connected (heard {} ms ago): this process is let in when "
                          "that connection has ended or was silent for its lease of {} ms",
                          who, silent, config_.lease_ttl.count()));
}

std::optional<WorkerId> ClusterState::free_worker_id(const proto::Hello& hello) const {
  std::optional<WorkerId> used;
  std::optional<WorkerId> fresh;
  for (std::uint32_t index = 0; index < workers_.size(); ++index) {
    const Worker& each = workers_[index];
    if (each.connection) continue;
    // The same process again: incarnations of a static fleet are its workers' own.
    if (each.incarnation == hello.incarnation) return WorkerId{index};
    if (each.expected || each.retired) continue;
    if (each.incarnation == 0 && !fresh) fresh = WorkerId{index};
    if (each.incarnation != 0 && !used) used = WorkerId{index};
  }
  // A lost worker may come back and ask for its id: others take it last.
  return fresh ? fresh : used;
}

void ClusterState::welcome_worker(const PeerHello& event) {
  const proto::Hello& hello = event.hello;
  std::optional<WorkerId> given;
  if (hello.id) {
    given = WorkerId{*hello.id};
  } else if (config_.static_fleet) {
    given = free_worker_id(hello);
    if (!given) {
      return refuse(
          event.connection,
          fail(ErrorCode::kResourceExhausted,
               fmt::format("there are {} workers already; start the coordinator with more "
                           "--workers",
                           config_.max_workers)));
    }
  }
  if (!given || given->value >= config_.max_workers) {
    return refuse(
        event.connection,
        fail(ErrorCode::kInvalidArgument,
             fmt::format("a worker must give its id, below --workers {}", config_.max_workers)));
  }
  for (ExpertId held : hello.resident) {
    if (is_in_model(config_.model, held)) continue;
    return refuse(event.connection,
                  fail(ErrorCode::kInvalidArgument,
                       fmt::format("it says that it holds expert {} of layer {}, which the "
                                   "checkpoint does not have",
                                   held.expert, held.layer)));
  }
  const WorkerId id = *given;
  Worker& joined = worker(id);
  const bool same_process = joined.incarnation == hello.incarnation;
  if (joined.connection) {
    if (!same_process) {
      // Of a fleet of our own the former process has ended before the next one starts.
      return refuse(event.connection, config_.static_fleet
                                          ? id_is_taken(fmt::format("worker {}", id.value),
                                                        joined.last_heard, joined.contenders, hello)
                                          : fail(ErrorCode::kAlreadyExists,
                                                 fmt::format("worker {} is already connected "
                                                             "(incarnation {})",
                                                             id.value, joined.incarnation)));
    }
    // Its side of the connection ended first, and ours has not noticed.
    act(CloseConnection{*joined.connection});
    worker_connections_.erase(*joined.connection);
    joined.connection.reset();
    joined.expected = true;
  }
  if (config_.static_fleet) {
    if (!same_process) {
      if (joined.expected) lose_worker(id, "another process took its place");
      joined.incarnation = hello.incarnation;
      joined.restart_at = {};
    }
    if (joined.process != Worker::Process::kRunning || !same_process) joined.started = now_;
    joined.process = Worker::Process::kRunning;
    ++fleet_version_;
    fleet_changed_at_ = now_;
    durable_changed_ = true;
  } else if (joined.process != Worker::Process::kRunning || !same_process) {
    return refuse(
        event.connection,
        fail(ErrorCode::kLeaseLost,
             fmt::format(
                 "worker {} of incarnation {} is not expected: the coordinator starts its workers "
                 "itself and replaced or stopped this one",
                 id.value, hello.incarnation)));
  }
  const bool came_back = !hello.resident.empty();
  Experts known;  // what it held for the published epoch and was never told to drop
  if (joined.expected) {
    std::set_intersection(joined.resident.begin(), joined.resident.end(), hello.resident.begin(),
                          hello.resident.end(), std::back_inserter(known));
  }
  const bool talked_before = joined.expected || (config_.static_fleet && same_process);
  joined.expected = false;
  // A DropExperts of a former connection may still be under way in the worker: of what it says it
  // holds only what nobody can have told it to drop is certain; the rest is asked for again.
  joined.resident = std::move(known);
  joined.may_hold = hello.resident;
  joined.load_set.clear();
  joined.loading = false;
  joined.connection = event.connection;
  joined.hello = hello;
  joined.stats = {};
  joined.stats_due = true;
  joined.contenders.clear();
  joined.last_heard = now_;
  worker_connections_[event.connection] = id;
  welcome(event.connection, id.value);
  if (talked_before) {
    // A LoadExperts of a former connection may be under way as well: what it adds goes again.
    const Epoch epoch = published() != nullptr ? published()->placement.epoch : Epoch{};
    act(Send{event.connection, proto::DropExperts{epoch, joined.may_hold}});
  }
  note(LogLevel::kInfo,
       fmt::format(
           "worker {} {} (pid {}, incarnation {}{})", id.value,
           came_back ? "came back" : "connected", hello.pid, hello.incarnation,
           came_back ? fmt::format(", holds {} experts", hello.resident.size()) : std::string()));
  dirty_ = true;
}

void ClusterState::welcome_router(const PeerHello& event) {
  const proto::Hello& hello = event.hello;
  const auto is_same_process = [&hello](const Router& router) {
    return router.hello.pid == hello.pid && router.hello.incarnation == hello.incarnation;
  };
  RouterId id{hello.id.value_or(0)};
  // One that was assigned comes back.
  if (hello.id && id.value > kLastRouterIdOfItsOwn && id.value >= router_counter_) {
    return refuse(event.connection,
                  fail(ErrorCode::kInvalidArgument,
                       fmt::format("router id {} is above {}: give this router a smaller --id, or "
                                   "none",
                                   id.value, kLastRouterIdOfItsOwn)));
  }
  if (!hello.id) {
    const auto back = std::find_if(routers_.begin(), routers_.end(), [&](const auto& entry) {
      return is_same_process(entry.second);
    });
    if (back != routers_.end()) {
      id = back->first;
    } else {
      // Never one that was given before: its router may serve on, out of our reach, and come back.
      id.value = router_counter_;
      while (routers_.contains(id)) ++id.value;
    }
  }
  if (id.value == std::numeric_limits<std::uint32_t>::max()) {
    return refuse(event.connection,
                  fail(ErrorCode::kResourceExhausted,
                       "every router id has been assigned: give this router an --id of its own"));
  }
  if (id.value >= router_counter_) {
    router_counter_ = id.value + 1;
    durable_changed_ = true;
  }
  Router& router = routers_[id];
  const bool same_process = is_same_process(router);
  if (router.connection) {
    if (!same_process) {
      return refuse(event.connection, id_is_taken(fmt::format("router {}", id.value),
                                                  router.last_heard, router.contenders, hello));
    }
    act(CloseConnection{*router.connection});
    router_connections_.erase(*router.connection);
  }
  if (!same_process) router = Router{};
  // What it uses, by its own word: the confirmation may have been lost with the connection, or this
  // coordinator does not know the router yet.
  if (hello.epoch.value != 0) {
    router.active = std::max(router.active, hello.epoch);
    router.oldest = router.active;
  }
  router.connection = event.connection;
  router.contenders.clear();
  router.hello = hello;
  router.hello.http_address = seen_from_here(hello.http_address, event.remote_address);
  router.last_heard = now_;
  router_connections_[event.connection] = id;
  welcome(event.connection, id.value);
  const bool ahead = hello.epoch.value > epoch_counter_;
  if (ahead) {
    // Our state was lost or is older than the router: numbers go on above its own.
    note(
        LogLevel::kWarning,
        fmt::format("router {} uses epoch {}, later than any that is known here: going on above it",
                    id.value, hello.epoch.value));
    epoch_counter_ = hello.epoch.value;
    durable_changed_ = true;
  }
  if (published() != nullptr && (ahead || published()->placement.epoch < hello.epoch)) {
    publish({}, fmt::format("router {} was ahead", id.value));
  } else if (published() != nullptr) {
    act(Send{event.connection, proto::PublishEpoch{*published()}});
    if (router.oldest.value == 0) router.oldest = published()->placement.epoch;
  }
  note(LogLevel::kInfo, fmt::format("router {} connected (pid {})", id.value, hello.pid));
  dirty_ = true;
}

void ClusterState::on(const PeerMessage& event) {
  if (const auto it = worker_connections_.find(event.connection); it != worker_connections_.end()) {
    worker(it->second).last_heard = now_;
    return on_worker_message(it->second, event.message);
  }
  if (const auto it = router_connections_.find(event.connection); it != router_connections_.end()) {
    routers_.at(it->second).last_heard = now_;
    return on_router_message(it->second, event.message);
  }
  // A connection that we refused or closed: what was under way when we did.
}

void ClusterState::on_worker_message(WorkerId id, const proto::ControlMessage& message) {
  Worker& from = worker(id);
  if (const auto* heartbeat = std::get_if<proto::WorkerHeartbeat>(&message)) {
    from.stats = heartbeat->stats;
    if (from.stats_due && from.stats.experts_resident == from.resident.size()) {
      from.stats_due = false;
      dirty_ = true;
    }
    return;
  }
  const auto* ready = std::get_if<proto::ExpertsReady>(&message);
  if (ready == nullptr) {
    note(LogLevel::kWarning,
         fmt::format("worker {} sent a message that workers do not send; ignored", id.value));
    return;
  }
  if (!from.loading || ready->epoch != from.load_epoch)
    return;  // answers a request that was replaced
  from.loading = false;
  dirty_ = true;
  if (!ready->error) {
    Experts held;
    std::set_union(from.resident.begin(), from.resident.end(), from.load_set.begin(),
                   from.load_set.end(), std::back_inserter(held));
    from.resident = std::move(held);
    from.stats_due = from.stats.experts_resident != from.resident.size();
    from.failures = 0;
    from.load_again_at = {};
    from.lost = false;
    note(LogLevel::kInfo,
         fmt::format("worker {} holds {} experts ({} bytes read for epoch {})", id.value,
                     from.resident.size(), ready->bytes_read, ready->epoch.value));
    return;
  }
  const std::string why =
      fmt::format("worker {} could not load its experts: {}", id.value, ready->error->message);
  note(LogLevel::kError, why);
  // The process is well; what it reads from is not. It keeps what it has and tries again later.
  from.backoff = from.backoff.count() == 0 ? config_.first_backoff
                                           : std::min(from.backoff * 2, config_.max_backoff);
  from.load_again_at = now_ + from.backoff;
  from.last_loss = why;
  drop_stand_ins(id);
  if (change_ && change_->phase == Phase::kLoading &&
      change_->target.placement.workers().contains(id) && !change_->failure) {
    change_->failure = fail(ready->error->code, why);
  }
}

void ClusterState::on_router_message(RouterId id, const proto::ControlMessage& message) {
  Router& from = routers_.at(id);
  if (const auto* heartbeat = std::get_if<proto::RouterHeartbeat>(&message)) {
    from.stats = heartbeat->stats;
    if (change_ && change_->phase == Phase::kDraining) dirty_ = true;
    return;
  }
  if (const auto* active = std::get_if<proto::EpochActive>(&message)) {
    if (published() == nullptr || active->epoch > published()->placement.epoch ||
        active->epoch < from.oldest) {
      note(LogLevel::kWarning,
           fmt::format("router {} confirmed epoch {}, which it was not sent; ignored", id.value,
                       active->epoch.value));
      return;
    }
    if (!active->problem.empty()) return router_has_problem(id, *active);
    from.oldest = from.active = active->epoch;
    dirty_ = true;
    const auto view = std::find_if(history_.begin(), history_.end(), [&](const EpochView& each) {
      return each.placement.epoch == active->epoch;
    });
    if (view == history_.end()) return;
    for (WorkerId lost : active->lost_workers) {
      for (const WorkerEndpoint& endpoint : view->workers) {
        if (endpoint.id == lost)
          suspect(id, lost, endpoint.incarnation, "could not open a lane to it");
      }
    }
    return;
  }
  if (const auto* suspicion = std::get_if<proto::WorkerSuspect>(&message)) {
    return suspect(id, suspicion->worker, suspicion->incarnation, suspicion->reason);
  }
  if (const auto* load = std::get_if<proto::ExpertLoad>(&message)) {
    if (load_.fits(load->tokens)) return load_.add(load->tokens, now_);
    act(CloseConnection{*from.connection});
    return router_left(id,
                       "it reported the load of other layers and experts than the checkpoint's");
  }
  note(LogLevel::kWarning,
       fmt::format("router {} sent a message that routers do not send; ignored", id.value));
}

/// It serves on with an older epoch and tries again; a change does not wait for that.
void ClusterState::router_has_problem(RouterId id, const proto::EpochActive& report) {
  const std::string why =
      fmt::format("router {} does not hold the experts that epoch {} wants routers to hold: {}",
                  id.value, report.epoch.value, report.problem);
  note(LogLevel::kError, why);
  if (!change_ || change_->phase != Phase::kActivating || report.epoch < change_->epoch ||
      change_->failure)
    return;
  change_->failure = fail(ErrorCode::kUnavailable, why);
  dirty_ = true;
}

void ClusterState::suspect(RouterId router,
                           WorkerId id,
                           std::uint64_t incarnation,
                           const std::string& why) {
  const bool current = id.value < workers_.size() && worker(id).incarnation == incarnation &&
                       worker(id).process == Worker::Process::kRunning;
  if (!current) {
    note(
        LogLevel::kDebug,
        fmt::format("router {} suspects worker {} of incarnation {}, which is not running any more",
                    router.value, id.value, incarnation));
    return;
  }
  // A worker that hangs or was stopped may wake up later: it must be dead before it is replaced.
  Worker& accused = worker(id);
  const std::string report = fmt::format("router {} reports: {}", router.value, why);
  const bool others_could_tell =
      std::any_of(routers_.begin(), routers_.end(), [router](const auto& entry) {
        return entry.first != router && entry.second.connection.has_value();
      });
  const bool others_agree = accused.suspicion && accused.suspicion->router != router;
  if (!others_could_tell || others_agree || !accused.connection || heartbeat_is_late(accused))
    return lose_worker(id, report);
  if (accused.suspicion) return;
  note(LogLevel::kWarning,
       fmt::format("{}; worker {} lives, and no other router complains: it is lost if one does, or "
                   "if it computes nothing for anybody within {} ms while requests run",
                   report, id.value, config_.lease_ttl.count()));
  accused.suspicion = Suspicion{router, now_, report, {}};
}

/// What became of the suspicion of a single router: see suspect().
void ClusterState::look_into_suspicion(WorkerId id) {
  Worker& accused = worker(id);
  if (!accused.suspicion) return;
  Suspicion& suspicion = *accused.suspicion;
  const std::uint64_t computed = accused.stats.dispatches;
  if (!suspicion.dispatches && accused.last_heard > suspicion.since)
    suspicion.dispatches = computed;
  if (suspicion.dispatches && computed > *suspicion.dispatches) {
    note(LogLevel::kWarning,
         fmt::format("worker {} computes for others: only router {} does not reach it", id.value,
                     suspicion.router.value));
    accused.suspicion.reset();
  } else if (heartbeat_is_late(accused)) {
    lose_worker(id, std::string(suspicion.report));
  } else if (now_ - suspicion.since < config_.lease_ttl) {
    return;
  } else if (!requests_run()) {
    note(LogLevel::kInfo,
         fmt::format("no request runs, and the heartbeats of worker {} come: what router {} "
                     "reported is dropped",
                     id.value, suspicion.router.value));
    accused.suspicion.reset();
  } else {
    lose_worker(id, suspicion.report + ", and it has computed nothing for anybody since");
  }
}

bool ClusterState::requests_run() const {
  return std::any_of(routers_.begin(), routers_.end(), [](const auto& entry) {
    const auto& running = entry.second.stats.running_per_deployment;
    return std::any_of(running.begin(), running.end(),
                       [](const auto& each) { return each.second > 0; });
  });
}

bool ClusterState::heartbeat_is_late(const Worker& peer) const {
  return now_ - peer.last_heard > config_.lease_ttl / 3 * 5 / 4;
}

void ClusterState::on(const PeerClosed& event) {
  if (const auto it = worker_connections_.find(event.connection); it != worker_connections_.end()) {
    const WorkerId id = it->second;
    worker_connections_.erase(it);
    worker(id).connection.reset();
    if (shutting_down_ && config_.static_fleet) {
      worker(id).process = Worker::Process::kNone;
      dirty_ = durable_changed_ = true;
      return;
    }
    if (worker(id).process == Worker::Process::kRunning)
      lose_worker(id, "its connection ended: " + event.reason);
    return;
  }
  if (const auto it = router_connections_.find(event.connection); it != router_connections_.end()) {
    router_left(it->second, event.reason);
  }
}

void ClusterState::router_left(RouterId id, const std::string& why) {
  Router& router = routers_.at(id);
  router_connections_.erase(*router.connection);
  router.connection.reset();
  // Until its lease is over, the experts of the epochs that it uses stay.
  router.gone_at = now_ + config_.lease_ttl;
  note(LogLevel::kInfo, fmt::format("router {} disconnected: {}", id.value, why));
  dirty_ = true;
}

void ClusterState::on(const ProcessStarted& event) {
  if (event.worker.value >= workers_.size()) return;
  Worker& started = worker(event.worker);
  if (started.incarnation != event.incarnation || started.process == Worker::Process::kNone) return;
  started.identity = event.process;
  durable_changed_ = true;
}

void ClusterState::on(const ProcessExited& event) {
  if (event.worker.value >= workers_.size()) return;
  Worker& ended = worker(event.worker);
  if (ended.incarnation != event.incarnation || ended.process == Worker::Process::kNone) return;
  dirty_ = durable_changed_ = true;
  const Worker::Process before = std::exchange(ended.process, Worker::Process::kNone);
  if (before == Worker::Process::kRunning) {
    lose_worker(event.worker, "its process ended: " + event.how);
    return;
  }
  forget(ended);
  if (before == Worker::Process::kStopping) {
    note(LogLevel::kInfo, fmt::format("worker {} stopped ({})", event.worker.value, event.how));
  }
}

}  // namespace moiety::coordinator
