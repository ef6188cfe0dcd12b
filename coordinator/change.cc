// Operations: one at a time, make-before-break, in steps, undone when they fail.
#include <algorithm>
#include <iterator>
#include <utility>

#include "coordinator/state.h"
#include "planner/moves.h"
#include "planner/router_experts.h"

namespace moiety::coordinator {

namespace {

constexpr std::size_t kEndedKept = 256;

template <class Deployments>
auto find_deployment(Deployments& all, const std::string& name) {
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
  text = text.empty() ? std::string("no worker") : text.append(" experts");
  if (!placement.router_experts.empty())
    text += fmt::format(", every router: {} experts", placement.router_experts.size());
  return text;
}

/// Takes experts that no deployment keeps out of a placement.
void forget_cold(Placement& placement, const std::vector<Deployment>& deployments) {
  for (std::size_t layer = 0; layer < placement.owners.size(); ++layer) {
    std::vector<bool> kept(placement.owners[layer].size(), false);
    for (const Deployment& deployment : deployments) {
      for (std::int32_t expert : deployment.kept.layers[layer])
        kept[static_cast<std::size_t>(expert)] = true;
    }
    for (std::size_t expert = 0; expert < kept.size(); ++expert) {
      if (!kept[expert]) placement.owners[layer][expert].clear();
    }
    std::erase_if(placement.router_experts, [&](ExpertId id) {
      return static_cast<std::size_t>(id.layer) == layer &&
             !kept[static_cast<std::size_t>(id.expert)];
    });
  }
}

}  // namespace

std::string ClusterState::describe_change(const Operation& operation) const {
  switch (operation.kind) {
    case Kind::kStart:
      return "the first deployments";
    case Kind::kDeploy:
      return "deploy " + display_name(operation.name);
    case Kind::kUndeploy:
      return "undeploy " + display_name(operation.name);
    case Kind::kDrain:
      return fmt::format("drain worker {}", operation.worker->value);
    case Kind::kUndrain:
      return fmt::format("undrain worker {}", operation.worker->value);
    case Kind::kRebalance:
      return "rebalance";
  }
  return "";
}

void ClusterState::advance_change() {
  if (!change_) {
    if (queue_.empty() && rebalance_due()) {
      Operation rebalance;
      rebalance.kind = Kind::kRebalance;
      rebalance.id.value = fmt::format("rebalance-{}", ++operation_counter_);
      rebalance.request_hash = hash_request(rebalance);
      queue_.push_back(std::move(rebalance));
    }
    if (queue_.empty()) return;
    Operation next = std::move(queue_.front());
    queue_.pop_front();
    return begin(std::move(next));
  }
  if (change_->failure) return roll_back(*change_->failure);

  switch (change_->phase) {
    case Phase::kDraining:
      // After a restart: a router that is not back yet may run requests that nobody here knows of.
      if (!usage_known() || still_running(change_->operation.name, change_->epoch) != 0) return;
      change_->wanted.erase(find_deployment(change_->wanted, change_->operation.name));
      change_->deadline = now_ + config_.operation_timeout;
      change_->phase = Phase::kGathering;
      dirty_ = true;
      return;
    case Phase::kGathering: {
      if (gather_pending()) return;
      const Result<void> planned = plan();
      if (planned) return;
      bool all_joined = true;
      for (std::uint32_t index = 0; index < workers_.size(); ++index)
        all_joined = all_joined && (worker(WorkerId{index}).retired || usable(WorkerId{index}));
      const bool more_may_join = config_.static_fleet && history_.empty() && !all_joined &&
                                 planned.error().code == ErrorCode::kResourceExhausted;
      change_->plan_error = planned.error().message;
      if (!more_may_join) roll_back(planned.error());
      return;
    }
    case Phase::kLoading:
      if (load_pending()) return;
      current_ = change_->target;
      publish(change_->epoch,
              change_->rest.empty()
                  ? describe_change(change_->operation)
                  : fmt::format("{}, step {} of {}", describe_change(change_->operation),
                                change_->num_steps - change_->rest.size(), change_->num_steps));
      change_->epoch = current_.placement.epoch;
      change_->phase = Phase::kActivating;
      return;
    case Phase::kActivating:
      if (routers_confirmed(change_->epoch)) activated();
      return;
    case Phase::kSettling: {
      if (const auto pending = settle_pending()) {
        if (now_ < change_->settle_deadline) return;
        note(LogLevel::kWarning, "not waiting any longer for " + *pending);
      }
      Change done = std::move(*change_);
      change_.reset();
      dirty_ = true;
      finish(std::move(done.operation), std::nullopt, &done);
      return;
    }
  }
}

void ClusterState::begin(Operation operation) {
  change_.emplace();
  change_->operation = std::move(operation);
  change_->deadline = now_ + config_.operation_timeout;
  change_->saved = current_;
  change_->wanted = current_.deployments;
  dirty_ = durable_changed_ = true;
  if (change_->operation.resumed) {
    note(LogLevel::kInfo, "going on with what ran when the coordinator ended: " +
                              describe_change(change_->operation));
  }
  Result<void> begun;
  switch (change_->operation.kind) {
    case Kind::kStart:
    case Kind::kDeploy:
      begun = begin_adding();
      break;
    case Kind::kUndeploy:
      begun = begin_removing();
      break;
    case Kind::kDrain:
    case Kind::kUndrain:
      begun = begin_retiring();
      break;
    case Kind::kRebalance:
      break;
  }
  if (!begun) roll_back(begun.error());
}

Result<void> ClusterState::begin_adding() {
  const Operation& operation = change_->operation;
  const auto is_there = [this](const Deployment& added) {
    const auto found = find_deployment(current_.deployments, added.name);
    return found != current_.deployments.end() && found->kept == added.kept &&
           found->on_missing == added.on_missing;
  };
  if (operation.resumed && !history_.empty() &&
      std::all_of(operation.deployments.begin(), operation.deployments.end(), is_there)) {
    // Published before the crash: what is left is to see that the routers use it.
    for (const Deployment& added : operation.deployments) {
      change_->saved.deployments.erase(find_deployment(change_->saved.deployments, added.name));
    }
    forget_cold(change_->saved.placement, change_->saved.deployments);
    begin_activating();
    return {};
  }
  for (const Deployment& added : operation.deployments) {
    if (find_deployment(change_->wanted, added.name) != change_->wanted.end()) {
      return fail(ErrorCode::kAlreadyExists,
                  fmt::format("{} is deployed already; undeploy it first or take another name",
                              display_name(added.name)));
    }
    change_->wanted.push_back(added);
  }
  return {};
}

Result<void> ClusterState::begin_removing() {
  const Operation& operation = change_->operation;
  const auto removed = find_deployment(current_.deployments, operation.name);
  if (removed == current_.deployments.end()) {
    if (operation.resumed) {
      begin_activating();
      return {};
    }
    return fail(ErrorCode::kNotFound,
                fmt::format("{} is not deployed", display_name(operation.name)));
  }
  find_deployment(change_->saved.deployments, operation.name)->draining = false;
  change_->deadline = now_ + config_.drain_timeout;
  change_->phase = Phase::kDraining;
  removed->draining = true;
  publish({}, fmt::format("{} takes no new requests", display_name(operation.name)));
  change_->epoch = current_.placement.epoch;
  return {};
}

Result<void> ClusterState::begin_retiring() {
  const WorkerId id = *change_->operation.worker;
  const bool retire = change_->operation.kind == Kind::kDrain;
  if (id.value >= workers_.size()) {
    return fail(ErrorCode::kNotFound,
                fmt::format("there is no worker {}; ids are below {}", id.value, workers_.size()));
  }
  change_->retired_before = change_->operation.resumed ? !retire : worker(id).retired;
  worker(id).retired = retire;
  return {};
}

/// Nothing to load (any more): the published epoch is what was asked for.
void ClusterState::begin_activating() {
  change_->phase = Phase::kActivating;
  change_->epoch = published()->placement.epoch;
  change_->deadline = now_ + config_.operation_timeout;
}

/// Plans change_->wanted and begins the first step to it.
Result<void> ClusterState::plan() {
  durable_changed_ = true;
  planner::PlaceOptions options;
  options.policy = config_.policy;
  options.capacity_per_layer = config_.capacity_per_layer;
  options.replicas = config_.replicas;
  options.load = load_.for_planning();
  options.follow_load = change_->operation.follows_load && !options.load.empty();
  options.router_experts =
      planner::choose_router_experts(config_.model, change_->wanted, config_.router_expert_bytes);
  options.eplb_groups = config_.eplb_groups;
  options.eplb_nodes = config_.eplb_nodes;
  for (std::uint32_t index = 0; index < workers_.size(); ++index) {
    if (usable(WorkerId{index})) options.workers.push_back(WorkerId{index});
  }
  const auto runs = [this](WorkerId id) { return worker(id).process == Worker::Process::kRunning; };
  if (config_.policy == planner::PlacementPolicy::kMembership) {
    std::stable_partition(options.workers.begin(), options.workers.end(), runs);
  }
  for (WorkerId id : options.workers) options.capacity_bytes.push_back(capacity_of(id));
  // What a lost worker held has to be read again wherever it goes: it is no reason to stay there.
  Placement held = effective_placement();
  for (auto& layer : held.owners) {
    for (auto& owners : layer) std::erase_if(owners, [&](WorkerId id) { return !runs(id); });
  }
  MOIETY_ASSIGN(Placement placement,
                planner::place_experts(config_.model, change_->wanted, options, held));
  placement.epoch = {};
  change_->cost = planner::move_cost(config_.model, held, placement);
  if (!history_.empty() && placement.owners == current_.placement.owners &&
      placement.router_experts == current_.placement.router_experts &&
      change_->wanted == current_.deployments) {
    note(LogLevel::kInfo, describe_change(change_->operation) + ": nothing has to move");
    call_back(placement);
    begin_activating();
    dirty_ = true;
    return {};
  }
  MOIETY_ASSIGN(std::vector<Placement> steps, steps_to(placement));
  change_->rest.clear();
  for (std::size_t step = 0; step < steps.size(); ++step) {
    const bool last = step + 1 == steps.size();
    const bool removes = change_->operation.kind == Kind::kUndeploy;
    change_->rest.push_back(
        {last || removes ? change_->wanted : current_.deployments, std::move(steps[step])});
  }
  change_->num_steps = change_->rest.size();
  note(LogLevel::kInfo,
       fmt::format("planned {} by {}: {}; loads {} experts ({} bytes), drops {}; {}",
                   describe_change(change_->operation), planner::policy_name(config_.policy),
                   plan_summary(change_->rest.back().placement), change_->cost.experts_loaded,
                   change_->cost.bytes_loaded, change_->cost.experts_dropped,
                   change_->num_steps == 1
                       ? std::string("one step")
                       : fmt::format("{} steps, so that no worker exceeds its capacity by more "
                                     "than {:.0f} %",
                                     change_->num_steps, 100 * config_.move_headroom)));
  begin_step();
  return {};
}

/// The epochs on the way from what is published to `target`.
Result<std::vector<Placement>> ClusterState::steps_to(const Placement& target) const {
  Placement from = current_.placement;
  for (const auto& [expert, stand_in] : stand_ins_) {
    auto& owners = from.owners[static_cast<std::size_t>(expert.layer)]
                              [static_cast<std::size_t>(expert.expert)];
    owners.insert(std::lower_bound(owners.begin(), owners.end(), stand_in), stand_in);
  }
  // A lost worker of a local fleet comes back and reads what it held; one of a static fleet may
  // not.
  if (config_.static_fleet) {
    for (auto& layer : from.owners) {
      for (auto& owners : layer) std::erase_if(owners, [&](WorkerId id) { return !serves(id); });
    }
  }
  std::map<WorkerId, std::uint64_t> limits;
  for (std::uint32_t index = 0; index < workers_.size(); ++index) {
    if (const std::uint64_t limit = limit_of(WorkerId{index}); limit != 0)
      limits[WorkerId{index}] = limit;
  }
  MOIETY_ASSIGN(std::vector<Placement> steps,
                planner::split_move(config_.model, from, target, limits));
  // On the way, what nobody holds stays with those that lost it.
  for (std::size_t step = 0; step + 1 < steps.size(); ++step) {
    auto& owners = steps[step].owners;
    for (std::size_t layer = 0; layer < owners.size(); ++layer) {
      for (std::size_t expert = 0; expert < owners[layer].size(); ++expert) {
        if (owners[layer][expert].empty() && !target.owners[layer][expert].empty())
          owners[layer][expert] = current_.placement.owners[layer][expert];
      }
    }
  }
  return steps;
}

void ClusterState::begin_step() {
  change_->target = std::move(change_->rest.front());
  change_->rest.pop_front();
  change_->epoch = Epoch{++epoch_counter_};
  change_->target.placement.epoch = change_->epoch;
  change_->phase = Phase::kLoading;
  change_->deadline = now_ + config_.operation_timeout;
  call_back(change_->target.placement);
  dirty_ = durable_changed_ = true;
}

/// A change gives every worker that it uses another chance.
void ClusterState::call_back(const Placement& placement) {
  for (WorkerId id : placement.workers()) {
    Worker& used = worker(id);
    if (used.parked) used.restart_at = now_;
    used.parked = false;
    used.failures = 0;
    used.load_again_at = {};
  }
}

/// Whether the next step, planned a while ago, only adds to workers that may be used, within their
/// limits. (One that is drained, or gone from a static fleet, is left step by step.)
bool ClusterState::step_fits(const Placement& next) const {
  const std::vector<Experts> needed = needed_experts();
  const std::vector<Experts> placed = placed_experts(next);
  for (std::uint32_t index = 0; index < workers_.size(); ++index) {
    Experts together;
    std::set_union(needed[index].begin(), needed[index].end(), placed[index].begin(),
                   placed[index].end(), std::back_inserter(together));
    if (together.size() == needed[index].size()) continue;
    const std::uint64_t limit = limit_of(WorkerId{index});
    if (!usable(WorkerId{index}) || (limit != 0 && bytes_of(together) > limit)) return false;
  }
  return true;
}

/// Every router uses the step's epoch.
void ClusterState::activated() {
  dirty_ = true;
  if (!change_->rest.empty()) {
    change_->saved = current_;
    ++change_->steps_done;
    if (step_fits(change_->rest.front().placement)) return begin_step();
    if (++change_->plans_dropped > kMaxPlansDropped) {
      change_->failure =
          fail(ErrorCode::kUnavailable,
               fmt::format("workers came or went {} times while it was done; try again when they "
                           "stay",
                           change_->plans_dropped));
      return;
    }
    note(LogLevel::kInfo, "workers came or went meanwhile: planning the rest anew");
    change_->phase = Phase::kGathering;
    change_->deadline = now_ + config_.operation_timeout;
    return;
  }
  change_->phase = Phase::kSettling;
  // Workers report at least every third of the lease; processes end within the fleet's grace.
  change_->settle_deadline = now_ + config_.lease_ttl;
  if (change_->operation.kind == Kind::kUndeploy || change_->operation.kind == Kind::kDrain) {
    change_->settle_deadline += config_.stop_timeout;
  }
}

bool ClusterState::published_in_full() const {
  return change_->phase == Phase::kSettling ||
         (change_->phase == Phase::kActivating && change_->rest.empty());
}

void ClusterState::roll_back(Error error) {
  Change failed = std::move(*change_);
  change_.reset();
  dirty_ = true;
  const Operation& operation = failed.operation;
  if (operation.kind == Kind::kDrain && operation.worker->value < workers_.size()) {
    worker(*operation.worker).retired = failed.retired_before;
  }
  if (current_.deployments != failed.saved.deployments ||
      current_.placement.owners != failed.saved.placement.owners ||
      current_.placement.router_experts != failed.saved.placement.router_experts) {
    current_ = failed.saved;
    publish({}, "back to what was before: " + error.message);
  }
  // Once a step without it was published there is no way back.
  if (operation.kind == Kind::kUndeploy && failed.phase != Phase::kDraining &&
      (failed.num_steps > 0 || operation.resumed) &&
      find_deployment(current_.deployments, operation.name) == current_.deployments.end()) {
    note(LogLevel::kWarning, fmt::format("{} is gone, but the rest could not be placed anew: {}",
                                         display_name(operation.name), error.message));
    return finish(std::move(failed.operation), std::nullopt, &failed);
  }
  if (operation.kind == Kind::kUndrain && operation.worker->value < workers_.size()) {
    note(LogLevel::kWarning,
         fmt::format("worker {} may be used again, but nothing could be placed anew: {}",
                     operation.worker->value, error.message));
    return finish(std::move(failed.operation), std::nullopt, &failed);
  }
  failed.operation.rolled_back = failed.steps_done == 0;
  if (failed.steps_done > 0) {
    error.message += fmt::format(
        " (stopped after step {} of {}: what is deployed is as before, experts stay where that "
        "step "
        "put them; `moiety rebalance` or the next change places them anew)",
        failed.steps_done, std::max(failed.num_steps, failed.steps_done));
  } else if (failed.num_steps > 0 || failed.phase == Phase::kDraining) {
    error.message += " (rolled back: deployments and workers are as before)";
  }
  finish(std::move(failed.operation), std::move(error), &failed);
}

void ClusterState::finish(Operation operation, std::optional<Error> error, const Change* change) {
  operation.state = error ? OperationState::kFailed : OperationState::kSucceeded;
  operation.error = error;
  if (change != nullptr) operation.cost = change->cost;
  if (!error && published() != nullptr) operation.epoch = published()->placement.epoch;
  ++operations_ended_[{operation.kind, !error}];
  if (!error) moved_ += operation.cost;
  operation.deployments.clear();
  const std::string what = describe_change(operation);
  if (error) {
    note(LogLevel::kError, what + " failed: " + error->message);
  } else {
    note(LogLevel::kInfo, fmt::format("{}: done (epoch {})", what, operation.epoch.value));
  }
  for (RequestId request : operation.requests) {
    act(CompleteOperation{request, operation.id, error});
  }
  durable_changed_ = true;
  ended_.push_back(std::move(operation));
  if (ended_.size() > kEndedKept) ended_.pop_front();
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

/// What a change waits for before it is planned; nullopt when nothing.
std::optional<std::string> ClusterState::gather_pending() const {
  for (const EpochView& view : history_) {
    // What routers may still use takes room; the move was planned with what is published.
    if (view.placement.owners == history_.back().placement.owners) continue;
    for (const auto& [id, router] : routers_) {
      if (router.oldest <= view.placement.epoch) {
        return fmt::format("router {} to switch to epoch {}", id.value,
                           history_.back().placement.epoch.value);
      }
    }
  }
  if (!usage_known()) return "routers to come back after the coordinator's restart";
  if (!config_.static_fleet || !history_.empty()) return std::nullopt;
  std::size_t joined = 0;
  for (std::uint32_t index = 0; index < workers_.size(); ++index) {
    joined += worker(WorkerId{index}).retired || usable(WorkerId{index}) ? 1 : 0;
  }
  if (joined == workers_.size() || (joined > 0 && now_ - fleet_changed_at_ >= config_.lease_ttl)) {
    return std::nullopt;
  }
  return fmt::format("workers to join: {} of {} are there", joined, workers_.size());
}

/// What the target lacks; nullopt when every worker of it is ready.
std::optional<std::string> ClusterState::load_pending() const {
  for (WorkerId id : change_->target.placement.workers()) {
    // Gone from a static fleet: on the way it is named for what nobody else has yet.
    if (config_.static_fleet && !serves(id)) continue;
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
  const std::set<WorkerId> used = history_.back().placement.workers();
  const bool until_ended = !config_.static_fleet && (change_->operation.kind == Kind::kUndeploy ||
                                                     change_->operation.kind == Kind::kDrain);
  for (std::uint32_t index = 0; index < workers_.size(); ++index) {
    const Worker& each = workers_[index];
    const bool extra = !used.contains(WorkerId{index}) && each.process != Worker::Process::kNone;
    if (extra && until_ended) return fmt::format("worker {} to end", index);
    if ((!extra || config_.static_fleet) && each.connection && each.stats_due && !each.loading) {
      return fmt::format("worker {} to report what it holds", index);
    }
  }
  return std::nullopt;
}

std::string ClusterState::waiting_for() const {
  switch (change_->phase) {
    case Phase::kDraining:
      if (!usage_known()) return "routers to come back after the coordinator's restart";
      return fmt::format("{} running requests of {}",
                         still_running(change_->operation.name, change_->epoch),
                         display_name(change_->operation.name));
    case Phase::kGathering:
      if (const auto pending = gather_pending()) return *pending;
      return change_->plan_error.empty() ? std::string("nothing")
                                         : "more workers: " + change_->plan_error;
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
