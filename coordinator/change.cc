// Operations: one at a time, make-before-break, undone when they fail.
#include <algorithm>
#include <utility>

#include "coordinator/state.h"

namespace moiety::coordinator {

namespace {

constexpr std::size_t kEndedKept = 64;

std::vector<Deployment>::iterator find_deployment(std::vector<Deployment>& all,
                                                  const std::string& name) {
  return std::find_if(all.begin(), all.end(),
                      [&](const Deployment& each) { return each.name == name; });
}

/// The workers of a placement with what each holds, ascending.
std::string plan_summary(const Placement& placement) {
  std::string text;
  for (WorkerId id : placement.workers()) {
    text += fmt::format("{}worker {}: {}", text.empty() ? "" : ", ", id.value,
                        placement.experts_of(id).size());
  }
  return text.empty() ? std::string("no worker") : text.append(" experts");
}

}  // namespace

void ClusterState::advance_change() {
  if (!change_) {
    if (queue_.empty()) return;
    Operation next = std::move(queue_.front());
    queue_.pop_front();
    return begin(std::move(next));
  }
  if (change_->failure) return roll_back(*change_->failure);

  switch (change_->phase) {
    case Phase::kDraining: {
      if (still_running(change_->operation.name, change_->epoch) != 0) return;
      std::vector<Deployment> left = current_.deployments;
      left.erase(find_deployment(left, change_->operation.name));
      change_->deadline = now_ + config_.operation_timeout;
      if (auto planned = plan(std::move(left)); !planned) roll_back(planned.error());
      return;
    }
    case Phase::kLoading: {
      if (load_pending()) return;
      current_ = change_->target;
      const std::string what =
          change_->operation.kind == Kind::kStart
              ? "the first deployments"
              : fmt::format("{} {}",
                            change_->operation.kind == Kind::kDeploy ? "deployed" : "undeployed",
                            display_name(change_->operation.name));
      publish(change_->epoch, what);
      change_->epoch = current_.placement.epoch;
      change_->phase = Phase::kActivating;
      return;
    }
    case Phase::kActivating:
      if (!routers_confirmed(change_->epoch)) return;
      change_->phase = Phase::kSettling;
      // Workers report at least every third of the lease; processes end within the fleet's grace.
      change_->settle_deadline = now_ + config_.lease_ttl;
      if (change_->operation.kind == Kind::kUndeploy) {
        change_->settle_deadline += config_.stop_timeout;
      }
      dirty_ = true;
      return;
    case Phase::kSettling: {
      if (const auto pending = settle_pending()) {
        if (now_ < change_->settle_deadline) return;
        note(LogLevel::kWarning, "not waiting any longer for " + *pending);
      }
      const Change done = std::move(*change_);
      change_.reset();
      dirty_ = true;
      finish(done.operation, std::nullopt, &done);
      return;
    }
  }
}

void ClusterState::begin(Operation operation) {
  const Result<void> begun =
      operation.kind == Kind::kUndeploy ? begin_removing(operation) : begin_adding(operation);
  dirty_ = true;
  if (begun) return;
  change_.reset();
  finish(operation, begun.error(), nullptr);
}

Result<void> ClusterState::begin_adding(const Operation& operation) {
  std::vector<Deployment> deployments = current_.deployments;
  for (const Deployment& added : operation.deployments) {
    if (find_deployment(deployments, added.name) != deployments.end()) {
      return fail(ErrorCode::kAlreadyExists,
                  fmt::format("{} is deployed already; undeploy it first or take another name",
                              display_name(added.name)));
    }
    deployments.push_back(added);
  }
  change_.emplace();
  change_->operation = operation;
  change_->deadline = now_ + config_.operation_timeout;
  change_->saved = current_;
  return plan(std::move(deployments));
}

Result<void> ClusterState::begin_removing(const Operation& operation) {
  const auto removed = find_deployment(current_.deployments, operation.name);
  if (removed == current_.deployments.end()) {
    return fail(ErrorCode::kNotFound,
                fmt::format("{} is not deployed", display_name(operation.name)));
  }
  change_.emplace();
  change_->operation = operation;
  change_->deadline = now_ + config_.drain_timeout;
  change_->saved = current_;
  change_->phase = Phase::kDraining;
  removed->draining = true;
  publish({}, fmt::format("{} takes no new requests", display_name(operation.name)));
  change_->epoch = current_.placement.epoch;
  return {};
}

/// Plans `deployments` into the change's target and begins to load it.
Result<void> ClusterState::plan(std::vector<Deployment> deployments) {
  planner::PlaceOptions options;
  options.policy = config_.policy;
  options.capacity_per_layer = config_.capacity_per_layer;
  for (std::uint32_t index = 0; index < workers_.size(); ++index)
    options.workers.push_back(WorkerId{index});
  const auto runs = [this](WorkerId id) { return worker(id).process == Worker::Process::kRunning; };
  if (config_.policy == planner::PlacementPolicy::kMembership) {
    std::stable_partition(options.workers.begin(), options.workers.end(), runs);
  }
  // What a lost worker held has to be read again wherever it goes: it is no reason to stay there.
  Placement held = current_.placement;
  for (auto& layer : held.owners) {
    for (auto& owners : layer) std::erase_if(owners, [&](WorkerId id) { return !runs(id); });
  }
  MOIETY_ASSIGN(Placement placement,
                planner::place_experts(config_.model, deployments, options, held));

  change_->cost = planner::move_cost(config_.model, current_.placement, placement);
  change_->target = {std::move(deployments), std::move(placement)};
  change_->epoch = Epoch{++epoch_counter_};
  change_->target.placement.epoch = change_->epoch;
  change_->phase = Phase::kLoading;
  for (WorkerId id : change_->target.placement.workers()) {
    Worker& used = worker(id);
    if (used.parked) used.restart_at = now_;
    used.parked = false;
    used.failures = 0;
  }
  dirty_ = true;
  note(LogLevel::kInfo,
       fmt::format("planned epoch {} by {}: {}; loads {} experts ({} bytes), drops {}",
                   change_->epoch.value, planner::policy_name(config_.policy),
                   plan_summary(change_->target.placement), change_->cost.experts_loaded,
                   change_->cost.bytes_loaded, change_->cost.experts_dropped));
  return {};
}

void ClusterState::roll_back(Error error) {
  const Change failed = std::move(*change_);
  change_.reset();
  dirty_ = true;
  if (current_.deployments != failed.saved.deployments ||
      current_.placement.owners != failed.saved.placement.owners) {
    current_ = failed.saved;
    publish({}, "back to the deployments before: " + error.message);
  }
  finish(failed.operation, std::move(error), &failed);
}

void ClusterState::finish(const Operation& operation,
                          std::optional<Error> error,
                          const Change* change) {
  OperationStatus ended =
      describe(operation, error ? OperationState::kFailed : OperationState::kSucceeded);
  ended.error = error;
  if (change != nullptr) {
    ended.cost = change->cost;
    if (!error) ended.epoch = change->epoch;
  }
  const std::string what = operation.kind == Kind::kStart
                               ? ended.kind
                               : fmt::format("{} {}", ended.kind, display_name(operation.name));
  if (error) {
    note(LogLevel::kError, what + " failed: " + error->message);
  } else {
    note(LogLevel::kInfo, fmt::format("{} is done (epoch {})", what, ended.epoch.value));
  }
  ended_.push_back(std::move(ended));
  if (ended_.size() > kEndedKept) ended_.pop_front();
  act(CompleteOperation{operation.id, std::move(error)});
}

bool ClusterState::routers_confirmed(Epoch epoch) const {
  return std::all_of(routers_.begin(), routers_.end(),
                     [epoch](const auto& entry) { return entry.second.active >= epoch; });
}

/// Requests of a deployment that are known or must be assumed to run: a router counts as running
/// one until it reported after it had switched to `since`.
std::uint64_t ClusterState::still_running(const std::string& deployment, Epoch since) const {
  std::uint64_t running = 0;
  for (const auto& [id, router] : routers_) {
    const auto found = router.stats.running_per_deployment.find(deployment);
    const std::uint64_t reported =
        found == router.stats.running_per_deployment.end() ? 0 : found->second;
    running += router.stats.epoch >= since ? reported : std::max<std::uint64_t>(reported, 1);
  }
  return running;
}

/// What the target lacks; nullopt when every worker of it is ready.
std::optional<std::string> ClusterState::load_pending() const {
  for (WorkerId id : change_->target.placement.workers()) {
    if (holds(id, change_->target.placement.experts_of(id))) continue;
    const Worker& each = worker(id);
    const char* doing = each.process != Worker::Process::kRunning ? "to start"
                        : !each.connection                        ? "to connect"
                                                                  : "to load its experts";
    return fmt::format(
        "worker {} {}{}", id.value, doing,
        each.last_loss.empty() ? "" : " (it was lost before: " + each.last_loss + ")");
  }
  return std::nullopt;
}

/// What a change still waits for after the routers have switched; nullopt when nothing.
std::optional<std::string> ClusterState::settle_pending() const {
  const std::set<WorkerId> used = current_.placement.workers();
  for (std::uint32_t index = 0; index < workers_.size(); ++index) {
    const Worker& each = workers_[index];
    const bool extra = !used.contains(WorkerId{index}) && each.process != Worker::Process::kNone;
    if (extra && change_->operation.kind == Kind::kUndeploy) {
      return fmt::format("worker {} to end", index);
    }
    if (!extra && each.stats_due && !each.loading) {
      return fmt::format("worker {} to report what it holds", index);
    }
  }
  return std::nullopt;
}

std::string ClusterState::waiting_for() const {
  switch (change_->phase) {
    case Phase::kDraining:
      return fmt::format("{} running requests of {}",
                         still_running(change_->operation.name, change_->epoch),
                         display_name(change_->operation.name));
    case Phase::kLoading:
      return load_pending().value_or("nothing");
    case Phase::kActivating:
      for (const auto& [id, router] : routers_) {
        if (router.active < change_->epoch)
          return fmt::format("router {} to switch to epoch {}", id.value, change_->epoch.value);
      }
      return "nothing";
    case Phase::kSettling:
      return settle_pending().value_or("nothing");
  }
  return "";
}

}  // namespace moiety::coordinator
