#include "coordinator/state.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/secret.h"
#include "proto/channel.h"

namespace moiety::coordinator {

using std::chrono::duration_cast;
using std::chrono::milliseconds;

ClusterState::ClusterState(ClusterConfig config, Clock::time_point now)
    : config_(std::move(config)),
      now_(now),
      last_tick_(now),
      workers_(config_.max_workers),
      incarnation_counter_(config_.first_incarnation - 1) {
  MOIETY_CHECK(config_.first_incarnation > 0, "incarnation 0 means none");
  MOIETY_CHECK(config_.capacity_per_layer > 0, "a worker must be able to hold an expert");
  const std::size_t num_layers = config_.model.layers.size();
  current_.placement.owners.resize(num_layers);
  for (std::size_t layer = 0; layer < num_layers; ++layer) {
    current_.placement.owners[layer].resize(
        static_cast<std::size_t>(config_.model.layers[layer].num_routed));
  }
}

std::vector<Action> ClusterState::handle(const Event& event, Clock::time_point now) {
  now_ = std::max(now_, now);
  actions_.clear();
  std::visit([this](const auto& what) { on(what); }, event);
  while (dirty_) {
    dirty_ = false;
    reconcile();
  }
  return std::exchange(actions_, {});
}

void ClusterState::on(const Tick&) {
  // A tick that comes late means that we did not run ourselves (stopped, suspended, starved): what
  // peers sent meanwhile is still unread, so nobody's silence can be held against them.
  if (now_ - last_tick_ > config_.lease_ttl / 3) {
    note(LogLevel::kWarning,
         fmt::format("the coordinator itself paused for {} ms: every lease starts anew",
                     duration_cast<milliseconds>(now_ - last_tick_).count()));
    for (Worker& each : workers_) each.last_heard = now_;
    for (auto& [id, router] : routers_) router.last_heard = now_;
  }
  last_tick_ = now_;

  check_worker_deadlines();
  for (auto it = routers_.begin(); it != routers_.end();) {
    auto& [id, router] = *it;
    const bool silent = router.connection && now_ - router.last_heard > config_.lease_ttl;
    if (silent) {
      act(CloseConnection{*router.connection});
      router_connections_.erase(*router.connection);
    }
    if (silent || (!router.connection && now_ >= router.gone_at)) {
      note(LogLevel::kWarning,
           fmt::format("router {} is gone: it was silent for longer than its lease of {} ms",
                       id.value, config_.lease_ttl.count()));
      it = routers_.erase(it);
      dirty_ = true;
    } else {
      ++it;
    }
  }
  if (change_ && change_->phase != Phase::kSettling && now_ >= change_->deadline &&
      !change_->failure) {
    change_->failure =
        fail(ErrorCode::kDeadlineExceeded,
             fmt::format("not done within {} s; it waited for {}",
                         duration_cast<std::chrono::seconds>(change_->phase == Phase::kDraining
                                                                 ? config_.drain_timeout
                                                                 : config_.operation_timeout)
                             .count(),
                         waiting_for()));
  }
  if (change_ || shutting_down_) dirty_ = true;
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
  switch (hello.role) {
    case proto::Role::kWorker:
      return welcome_worker(event);
    case proto::Role::kRouter:
      return welcome_router(event);
    case proto::Role::kAdmin:
      break;
  }
  refuse(event.connection,
         fail(ErrorCode::kInvalidArgument,
              "only workers and routers connect here; administration is over HTTP"));
}

void ClusterState::welcome_worker(const PeerHello& event) {
  const proto::Hello& hello = event.hello;
  if (!hello.id || *hello.id >= config_.max_workers) {
    return refuse(
        event.connection,
        fail(ErrorCode::kInvalidArgument,
             fmt::format("a worker must give its id, below --workers {}", config_.max_workers)));
  }
  const WorkerId id{*hello.id};
  Worker& joined = worker(id);
  if (joined.connection) {
    return refuse(event.connection,
                  fail(ErrorCode::kAlreadyExists,
                       fmt::format("worker {} is already connected (incarnation {})", id.value,
                                   joined.incarnation)));
  }
  if (joined.process != Worker::Process::kRunning || joined.incarnation != hello.incarnation) {
    return refuse(
        event.connection,
        fail(ErrorCode::kLeaseLost,
             fmt::format(
                 "worker {} of incarnation {} is not expected: the coordinator starts its workers "
                 "itself and replaced or stopped this one",
                 id.value, hello.incarnation)));
  }
  joined.connection = event.connection;
  joined.hello = hello;
  joined.last_heard = now_;
  worker_connections_[event.connection] = id;
  welcome(event.connection, id.value);
  note(LogLevel::kInfo, fmt::format("worker {} connected (pid {}, incarnation {})", id.value,
                                    hello.pid, hello.incarnation));
  dirty_ = true;
}

void ClusterState::welcome_router(const PeerHello& event) {
  const proto::Hello& hello = event.hello;
  const auto is_same_process = [&hello](const Router& router) {
    return router.hello.pid == hello.pid && router.hello.incarnation == hello.incarnation &&
           router.hello.http_address == hello.http_address;
  };
  RouterId id{hello.id.value_or(0)};
  if (!hello.id) {
    const auto back = std::find_if(routers_.begin(), routers_.end(), [&](const auto& entry) {
      return is_same_process(entry.second);
    });
    if (back != routers_.end()) {
      id = back->first;
    } else {
      while (routers_.contains(id)) ++id.value;
    }
  }
  Router& router = routers_[id];
  const bool same_process = is_same_process(router);
  if (router.connection) {
    if (!same_process) {
      return refuse(
          event.connection,
          fail(ErrorCode::kAlreadyExists,
               fmt::format("router {} is already connected; give another id or none", id.value)));
    }
    act(CloseConnection{*router.connection});
    router_connections_.erase(*router.connection);
  }
  if (!same_process) router = Router{};  // a new process uses no epoch yet
  router.connection = event.connection;
  router.hello = hello;
  router.last_heard = now_;
  router_connections_[event.connection] = id;
  welcome(event.connection, id.value);
  if (published() != nullptr) {
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
    from.resident = from.requested;
    from.stats_due = from.stats.experts_resident != from.resident.size();
    from.ready_since = now_;
    from.failures = 0;
    from.lost = false;
    note(LogLevel::kInfo,
         fmt::format("worker {} holds {} experts ({} bytes read for epoch {})", id.value,
                     from.resident.size(), ready->bytes_read, ready->epoch.value));
    return;
  }
  const std::string why =
      fmt::format("worker {} could not load its experts: {}", id.value, ready->error->message);
  note(LogLevel::kError, why);
  if (change_ && change_->phase == Phase::kLoading &&
      change_->target.placement.workers().contains(id)) {
    if (!change_->failure) change_->failure = fail(ready->error->code, why);
    return;  // the roll-back drops what it did load; supervise_workers() sees if it lacks what is
             // served
  }
  from.last_loss = why;
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
  note(LogLevel::kWarning,
       fmt::format("router {} sent a message that routers do not send; ignored", id.value));
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
  lose_worker(id, fmt::format("router {} reports: {}", router.value, why));
}

void ClusterState::on(const PeerClosed& event) {
  if (const auto it = worker_connections_.find(event.connection); it != worker_connections_.end()) {
    const WorkerId id = it->second;
    worker_connections_.erase(it);
    worker(id).connection.reset();
    if (worker(id).process == Worker::Process::kRunning)
      lose_worker(id, "its connection ended: " + event.reason);
    return;
  }
  if (const auto it = router_connections_.find(event.connection); it != router_connections_.end()) {
    Router& router = routers_.at(it->second);
    router.connection.reset();
    // Only the connection is known to be gone. The router may serve on and come back; until its
    // lease is over, the experts of the epochs that it uses stay.
    router.gone_at = now_ + config_.lease_ttl;
    note(LogLevel::kInfo,
         fmt::format("router {} disconnected: {}", it->second.value, event.reason));
    router_connections_.erase(it);
    dirty_ = true;
  }
}

void ClusterState::on(const ProcessExited& event) {
  Worker& ended = worker(event.worker);
  if (ended.incarnation != event.incarnation || ended.process == Worker::Process::kNone) return;
  dirty_ = true;
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

void ClusterState::enqueue(Operation operation) {
  if (shutting_down_) {
    act(CompleteOperation{operation.id,
                          fail(ErrorCode::kUnavailable, "the coordinator is shutting down")});
    return;
  }
  if (queue_.size() >= config_.max_queued_operations) {
    act(CompleteOperation{
        operation.id,
        fail(ErrorCode::kResourceExhausted,
             fmt::format("{} changes wait already; try again when some are done", queue_.size()))});
    return;
  }
  queue_.push_back(std::move(operation));
  dirty_ = true;
}

void ClusterState::on(const StartRequest& event) {
  enqueue({event.operation, Kind::kStart, "", event.deployments});
}

void ClusterState::on(const DeployRequest& event) {
  enqueue({event.operation, Kind::kDeploy, event.deployment.name, {event.deployment}});
}

void ClusterState::on(const UndeployRequest& event) {
  enqueue({event.operation, Kind::kUndeploy, event.name, {}});
}

void ClusterState::on(const ShutdownRequest& event) {
  dirty_ = true;
  if (shutting_down_) {
    note(LogLevel::kWarning, "second request to shut down: not waiting for the routers any longer");
    routers_deadline_ = now_;
    return;
  }
  shutting_down_ = true;
  routers_deadline_ = now_ + config_.shutdown_grace;
  note(LogLevel::kInfo, "shutting down: " + event.reason);
  const Error error = fail(ErrorCode::kCancelled, "the coordinator is shutting down");
  if (change_) {
    const Change change = std::move(*change_);
    change_.reset();
    finish(change.operation, error, &change);
  }
  while (!queue_.empty()) {
    const Operation operation = std::move(queue_.front());
    queue_.pop_front();
    finish(operation, error, nullptr);
  }
  for (const auto& [id, router] : routers_) {
    if (router.connection) act(Send{*router.connection, proto::Shutdown{event.reason}});
  }
}

}  // namespace moiety::coordinator
