#include "coordinator/state.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace moiety::coordinator {

using std::chrono::duration_cast;
using std::chrono::milliseconds;

namespace {

constexpr std::size_t kMaxOperationIdBytes = 128;

}  // namespace

ClusterState::ClusterState(ClusterConfig config,
                           Clock::time_point now,
                           std::optional<DurableState> durable)
    : config_(std::move(config)),
      now_(now),
      last_tick_(now),
      workers_(config_.max_workers),
      load_(config_.model),
      incarnation_counter_(config_.first_incarnation - 1),
      peers_back_at_(now) {
  MOIETY_CHECK(config_.first_incarnation > 0, "incarnation 0 means none");
  const std::size_t num_layers = config_.model.layers.size();
  current_.placement.owners.resize(num_layers);
  for (std::size_t layer = 0; layer < num_layers; ++layer) {
    current_.placement.owners[layer].resize(
        static_cast<std::size_t>(config_.model.layers[layer].num_routed));
  }
  if (durable) {
    persisted_ = std::make_shared<const DurableState>(*durable);
    restore(std::move(*durable));
  }
}

std::vector<Action> ClusterState::handle(const Event& event, Clock::time_point now) {
  now_ = std::max(now_, now);
  std::visit([this](const auto& what) { on(what); }, event);
  while (dirty_) {
    dirty_ = false;
    reconcile();
  }
  if (durable_changed_) persist();
  return std::exchange(actions_, {});
}

void ClusterState::act(Action action) {
  // What others see of us must be on disk first; talk alone is not.
  const auto* send = std::get_if<Send>(&action);
  const bool binds =
      send == nullptr
          ? !std::holds_alternative<Log>(action) && !std::holds_alternative<CloseConnection>(action)
          : std::holds_alternative<proto::PublishEpoch>(send->message) ||
                std::holds_alternative<proto::LoadExperts>(send->message) ||
                std::holds_alternative<proto::DropExperts>(send->message);
  if (binds) durable_changed_ = true;
  actions_.push_back(std::move(action));
}

void ClusterState::on(const Tick&) {
  // A tick that comes late means that we did not run ourselves (stopped, suspended, starved): what
  // peers sent meanwhile is still unread, so nobody's silence can be held against them.
  if (now_ - last_tick_ > config_.lease_ttl / 3) {
    note(LogLevel::kWarning,
         fmt::format("the coordinator itself paused for {} ms: every lease starts anew",
                     duration_cast<milliseconds>(now_ - last_tick_).count()));
    for (Worker& each : workers_) {
      each.last_heard = now_;
      each.contenders.clear();  // nobody was heard
    }
    for (auto& [id, router] : routers_) {
      router.last_heard = now_;
      router.contenders.clear();
    }
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
  const bool late = change_ && change_->phase != Phase::kSettling && now_ >= change_->deadline;
  const bool gathers_first =  // people start workers when they get to it
      late && config_.static_fleet && change_->phase == Phase::kGathering && history_.empty();
  if (gathers_first) {
    note(LogLevel::kWarning, "still waiting for " + waiting_for());
    change_->deadline = now_ + config_.operation_timeout;
  } else if (late && !change_->failure) {
    change_->failure =
        fail(ErrorCode::kDeadlineExceeded,
             fmt::format("not done within {} s; it waited for {}",
                         duration_cast<std::chrono::seconds>(change_->phase == Phase::kDraining
                                                                 ? config_.drain_timeout
                                                                 : config_.operation_timeout)
                             .count(),
                         waiting_for()));
  }
  // What else waits for time alone: back-offs, the end of a grace, a rebalance.
  if (change_ || shutting_down_ || !usage_known() || fleet_version_ != rebalanced_version_) {
    dirty_ = true;
  }
}

void ClusterState::on(const StartRequest& event) {
  Operation start;
  start.kind = Kind::kStart;
  start.deployments = event.deployments;
  if (restored_ && published() != nullptr) {
    note(LogLevel::kInfo,
         fmt::format("restored epoch {} with {} deployments: going on with them",
                     published()->placement.epoch.value, current_.deployments.size()));
    act(CompleteOperation{event.request, event.operation, std::nullopt});
    return;
  }
  // A start that was cut short: this call waits for it.
  if (change_ && change_->operation.kind == Kind::kStart) {
    change_->operation.requests.push_back(event.request);
    act(AcceptOperation{event.request, change_->operation.id});
    return;
  }
  for (Operation& each : queue_) {
    if (each.kind != Kind::kStart) continue;
    each.requests.push_back(event.request);
    act(AcceptOperation{event.request, each.id});
    return;
  }
  request(event, std::move(start));
}

void ClusterState::on(const DeployRequest& event) {
  Operation deploy;
  deploy.kind = Kind::kDeploy;
  deploy.name = event.deployment.name;
  deploy.deployments = {event.deployment};
  request(event, std::move(deploy));
}

void ClusterState::on(const UndeployRequest& event) {
  Operation undeploy;
  undeploy.kind = Kind::kUndeploy;
  undeploy.name = event.name;
  request(event, std::move(undeploy));
}

void ClusterState::on(const DrainRequest& event) {
  Operation drain;
  drain.kind = Kind::kDrain;
  drain.worker = event.worker;
  request(event, std::move(drain));
}

void ClusterState::on(const UndrainRequest& event) {
  Operation undrain;
  undrain.kind = Kind::kUndrain;
  undrain.worker = event.worker;
  request(event, std::move(undrain));
}

void ClusterState::on(const RebalanceRequest& event) {
  Operation rebalance;
  rebalance.kind = Kind::kRebalance;
  rebalance.follows_load = true;
  request(event, std::move(rebalance));
}

bool ClusterState::answer_known(const ChangeRequest& call, const Operation& operation) {
  const auto conflict = [&](const DurableOperation& known) {
    if (known.request_hash == operation.request_hash) return false;
    act(CompleteOperation{
        call.request, call.operation,
        fail(ErrorCode::kAlreadyExists,
             fmt::format("operation id '{}' was used for another change ({}); take a new id",
                         call.operation.value, operation_kind_name(known.kind))),
        /*refused=*/true});
    return true;
  };
  const auto join = [&](Operation& known) {
    if (conflict(known)) return;
    known.requests.push_back(call.request);
    act(AcceptOperation{call.request, known.id});
  };
  if (change_ && change_->operation.id == call.operation) return join(change_->operation), true;
  for (Operation& each : queue_) {
    if (each.id == call.operation) return join(each), true;
  }
  for (const DurableOperation& each : ended_) {
    if (each.id != call.operation) continue;
    if (!conflict(each)) act(CompleteOperation{call.request, each.id, each.error});
    return true;
  }
  return false;
}

void ClusterState::request(const ChangeRequest& call, Operation operation) {
  const auto refused = [&](ErrorCode code, std::string why) {
    act(CompleteOperation{call.request, call.operation, fail(code, std::move(why)),
                          /*refused=*/true});
  };
  operation.request_hash = hash_request(operation);
  if (!call.operation.value.empty() && answer_known(call, operation)) return;
  if (call.operation.value.size() > kMaxOperationIdBytes) {
    return refused(ErrorCode::kInvalidArgument,
                   fmt::format("operation id: {} bytes, at most {} are allowed",
                               call.operation.value.size(), kMaxOperationIdBytes));
  }
  if (shutting_down_) return refused(ErrorCode::kUnavailable, "the coordinator is shutting down");
  if (call.expected_epoch) {
    const Epoch epoch = published() != nullptr ? published()->placement.epoch : Epoch{};
    if (change_ || !queue_.empty()) {
      return refused(ErrorCode::kStaleEpoch,
                     fmt::format("epoch {} was expected, but a change of it is under way; look at "
                                 "the status and decide again",
                                 call.expected_epoch->value));
    }
    if (*call.expected_epoch != epoch) {
      return refused(ErrorCode::kStaleEpoch,
                     fmt::format("epoch {} was expected, but {} is published; look at the status "
                                 "and decide again",
                                 call.expected_epoch->value, epoch.value));
    }
  }
  if (queue_.size() >= config_.max_queued_operations) {
    return refused(
        ErrorCode::kResourceExhausted,
        fmt::format("{} changes wait already; try again when some are done", queue_.size()));
  }
  operation.id = call.operation;
  while (operation.id.value.empty() || this->operation(operation.id)) {
    operation.id.value =
        fmt::format("{}-{}", operation_kind_name(operation.kind), ++operation_counter_);
  }
  operation.requests = {call.request};
  act(AcceptOperation{call.request, operation.id});
  queue_.push_back(std::move(operation));
  dirty_ = true;
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
  if (change_ && published_in_full()) {
    Change done = std::move(*change_);
    change_.reset();
    finish(std::move(done.operation), std::nullopt, &done);
  }
  if (change_) roll_back(error);
  while (!queue_.empty()) {
    Operation operation = std::move(queue_.front());
    queue_.pop_front();
    operation.rolled_back = true;
    finish(std::move(operation), error, nullptr);
  }
  for (const auto& [id, router] : routers_) {
    if (router.connection) act(Send{*router.connection, proto::Shutdown{event.reason}});
  }
}

void ClusterState::advance_shutdown() {
  const bool routers_left = std::none_of(routers_.begin(), routers_.end(), [](const auto& entry) {
    return entry.second.connection.has_value();
  });
  if (!workers_deadline_) {
    if (!routers_left && now_ < routers_deadline_) return;
    workers_deadline_ = now_ + config_.stop_timeout;
    for (std::uint32_t index = 0; index < workers_.size(); ++index) {
      Worker& each = workers_[index];
      if (each.process != Worker::Process::kRunning) continue;
      if (config_.static_fleet) {
        if (each.connection) act(Send{*each.connection, proto::Shutdown{"the cluster ends"}});
        continue;
      }
      each.process = Worker::Process::kStopping;
      act(StopWorker{WorkerId{index}, each.incarnation});
    }
  }
  const bool all_ended = std::all_of(workers_.begin(), workers_.end(), [](const Worker& each) {
    return each.process == Worker::Process::kNone;
  });
  if (exited_ || (!all_ended && now_ < *workers_deadline_)) return;
  exited_ = true;
  act(Exit{});
}

}  // namespace moiety::coordinator
