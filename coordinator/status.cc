#include "coordinator/status.h"

#include <algorithm>
#include <map>
#include <set>

#include "coordinator/state.h"

namespace moiety::coordinator {

using std::chrono::duration_cast;
using std::chrono::milliseconds;

std::string_view worker_state_name(WorkerState state) {
  switch (state) {
    case WorkerState::kStarting:
      return "starting";
    case WorkerState::kLoading:
      return "loading";
    case WorkerState::kServing:
      return "serving";
    case WorkerState::kLost:
      return "lost";
    case WorkerState::kStopping:
      return "stopping";
    case WorkerState::kIdle:
      return "idle";
    case WorkerState::kAbsent:
      return "absent";
  }
  return "";
}

std::string_view operation_kind_name(OperationKind kind) {
  switch (kind) {
    case OperationKind::kStart:
      return "start";
    case OperationKind::kDeploy:
      return "deploy";
    case OperationKind::kUndeploy:
      return "undeploy";
    case OperationKind::kDrain:
      return "drain";
    case OperationKind::kUndrain:
      return "undrain";
    case OperationKind::kRebalance:
      return "rebalance";
  }
  return "";
}

std::string_view operation_state_name(OperationState state) {
  switch (state) {
    case OperationState::kQueued:
      return "queued";
    case OperationState::kRunning:
      return "running";
    case OperationState::kSucceeded:
      return "succeeded";
    case OperationState::kFailed:
      return "failed";
  }
  return "";
}

OperationStatus ClusterState::describe(const DurableOperation& operation) const {
  OperationStatus status;
  status.id = operation.id;
  status.kind = operation.kind;
  status.name = operation.name;
  status.worker = operation.worker;
  status.state = operation.state;
  status.error = operation.error;
  status.rolled_back = operation.rolled_back;
  status.epoch = operation.epoch;
  status.cost = operation.cost;
  return status;
}

std::optional<OperationStatus> ClusterState::operation(const OperationId& id) const {
  if (change_ && change_->operation.id == id) {
    OperationStatus status = describe(change_->operation);
    status.state = OperationState::kRunning;
    status.waiting_for = waiting_for();
    status.cost = change_->cost;
    status.num_steps = change_->num_steps;
    status.step = change_->num_steps - change_->rest.size();
    return status;
  }
  for (const Operation& each : queue_) {
    if (each.id == id) return describe(each);
  }
  for (const DurableOperation& each : ended_) {
    if (each.id == id) return describe(each);
  }
  return std::nullopt;
}

WorkerStatus ClusterState::describe_worker(WorkerId id) const {
  const Worker& each = worker(id);
  WorkerStatus status;
  status.id = id;
  switch (each.process) {
    case Worker::Process::kNone:
    case Worker::Process::kKilled:
      status.state = each.lost || current_.placement.workers().contains(id) ? WorkerState::kLost
                                                                            : WorkerState::kAbsent;
      break;
    case Worker::Process::kStopping:
      status.state = WorkerState::kStopping;
      break;
    case Worker::Process::kRunning:
      status.state = each.expected                               ? WorkerState::kServing
                     : !each.connection                          ? WorkerState::kStarting
                     : each.loading                              ? WorkerState::kLoading
                     : !each.resident.empty()                    ? WorkerState::kServing
                     : each.load_again_at != Clock::time_point{} ? WorkerState::kLoading
                                                                 : WorkerState::kIdle;
      break;
  }
  status.incarnation = each.incarnation;
  status.pid = each.hello.pid != 0 ? each.hello.pid : each.identity.pid;
  status.http_address = each.hello.http_address;
  status.experts = each.resident.size();
  status.bytes = bytes_of(each.resident);
  status.capacity_bytes = capacity_of(id);
  status.stands_in_for = static_cast<std::uint64_t>(
      std::count_if(published_stand_ins_.begin(), published_stand_ins_.end(),
                    [id](const auto& entry) { return entry.second == id; }));
  status.drained = each.retired;
  status.stats = each.stats;
  if (each.connection) status.lease_age = duration_cast<milliseconds>(now_ - each.last_heard);
  status.losses = each.losses;
  status.last_loss = each.last_loss;
  return status;
}

DeploymentStatus ClusterState::describe_deployment(const Deployment& deployment,
                                                   bool pending) const {
  DeploymentStatus status;
  status.name = deployment.name;
  status.served_as = display_name(deployment.name);
  status.state = pending ? "pending" : deployment.draining ? "draining" : "active";
  status.full = deployment.kept.full;
  status.on_missing = deployment.on_missing;
  bool first = true;
  for (std::size_t layer = 0; layer < deployment.kept.layers.size(); ++layer) {
    if (config_.model.layers[layer].num_routed == 0) continue;
    const auto kept = static_cast<std::int32_t>(deployment.kept.layers[layer].size());
    status.kept_min = first ? kept : std::min(status.kept_min, kept);
    status.kept_max = std::max(status.kept_max, kept);
    status.bytes += config_.model.layers[layer].expert_bytes * static_cast<std::uint64_t>(kept);
    first = false;
  }
  const Placement& placed = pending && !change_->rest.empty() ? change_->rest.back().placement
                            : pending                         ? change_->target.placement
                                                              : current_.placement;
  status.workers = planner::workers_of(placed, deployment.kept);
  if (!pending && published() != nullptr) {
    for (WorkerId id : status.workers) {
      const auto& present = published()->workers;
      if (std::none_of(present.begin(), present.end(),
                       [id](const auto& each) { return each.id == id; })) {
        status.lost_workers.push_back(id);
      }
    }
  }
  for (const auto& [id, router] : routers_) {
    const auto running = router.stats.running_per_deployment.find(deployment.name);
    if (running != router.stats.running_per_deployment.end()) status.running += running->second;
  }
  return status;
}

std::vector<GroupStatus> ClusterState::describe_groups() const {
  std::map<std::vector<std::int32_t>, GroupStatus> by_members;
  std::map<std::vector<std::int32_t>, std::set<WorkerId>> workers;
  const auto layers = planner::group_experts(config_.model, current_.deployments);
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    for (const planner::ExpertGroup& group : layers[layer]) {
      GroupStatus& status = by_members[group.members];
      status.experts += group.experts.size();
      status.bytes += config_.model.layers[layer].expert_bytes * group.experts.size();
      for (std::int32_t expert : group.experts) {
        const auto& owners = current_.placement.owners[layer][static_cast<std::size_t>(expert)];
        status.copies += owners.size();
        const auto& here = current_.placement.router_experts;
        status.on_routers += std::binary_search(here.begin(), here.end(),
                                                ExpertId{static_cast<std::int32_t>(layer), expert})
                                 ? 1
                                 : 0;
        status.load += load_.share({static_cast<std::int32_t>(layer), expert});
        workers[group.members].insert(owners.begin(), owners.end());
      }
    }
  }
  std::vector<GroupStatus> groups;
  for (auto& [members, status] : by_members) {
    for (std::int32_t index : members) {
      status.members.push_back(
          display_name(current_.deployments[static_cast<std::size_t>(index)].name));
    }
    status.workers.assign(workers[members].begin(), workers[members].end());
    groups.push_back(std::move(status));
  }
  return groups;
}

/// Whether it is there again or will be, by itself.
bool ClusterState::comes_back(WorkerId id) const {
  const Worker& each = worker(id);
  return each.process == Worker::Process::kRunning || (!config_.static_fleet && !each.parked);
}

/// Whether an expert that is placed on it is on no worker that serves, by the published view.
bool ClusterState::is_missed(WorkerId id) const {
  const EpochView& view = *published();
  const auto serves = [&view](WorkerId owner) {
    return std::any_of(view.workers.begin(), view.workers.end(),
                       [owner](const WorkerEndpoint& each) { return each.id == owner; });
  };
  const std::vector<ExpertId> placed = current_.placement.experts_of(id);
  return std::any_of(placed.begin(), placed.end(), [&](ExpertId expert) {
    const auto& owners = view.placement.owners[static_cast<std::size_t>(expert.layer)]
                                              [static_cast<std::size_t>(expert.expert)];
    return std::none_of(owners.begin(), owners.end(), serves);
  });
}

/// Needed experts and copies of them that no serving worker has, by the published view.
void ClusterState::count_missing(ClusterStatus& status) const {
  if (published() == nullptr) return;
  std::set<WorkerId> present;
  for (const WorkerEndpoint& each : published()->workers) present.insert(each.id);
  for (const auto& layer : published()->placement.owners) {
    for (const auto& owners : layer) {
      if (owners.empty()) continue;
      const auto serving = std::count_if(owners.begin(), owners.end(),
                                         [&](WorkerId id) { return present.contains(id); });
      status.experts_missing += serving == 0 ? 1 : 0;
      status.replicas_missing += static_cast<std::uint64_t>(std::max<std::int64_t>(
          0, std::int64_t{config_.replicas} - std::max<std::int64_t>(1, serving)));
    }
  }
}

/// Why requests cannot be served; "" when they can.
std::string ClusterState::why_not_ready(std::uint64_t experts_missing) const {
  if (shutting_down_) return "the cluster is shutting down";
  if (published() == nullptr) {
    return change_ ? "nothing is served yet; waiting for " + waiting_for()
                   : std::string("nothing is served yet");
  }
  if (experts_missing > 0)
    return fmt::format("{} experts are on no worker that serves", experts_missing);
  bool connected = false;
  for (const auto& [id, router] : routers_) {
    if (!router.connection) continue;
    if (router.active.value != 0) return "";
    connected = true;
  }
  return connected ? "no router uses an epoch yet" : "no router is connected";
}

ClusterStatus ClusterState::status(Clock::time_point now) const {
  ClusterStatus status;
  status.served_name = config_.served_name;
  status.fingerprint = config_.model.fingerprint;
  status.shutting_down = shutting_down_;
  status.policy = config_.policy;
  status.capacity_per_layer = config_.capacity_per_layer;
  status.max_workers = config_.max_workers;
  status.static_fleet = config_.static_fleet;
  status.move_headroom = config_.move_headroom;
  status.replicas = config_.replicas;
  status.router_expert_bytes = config_.router_expert_bytes;
  status.router_experts = current_.placement.router_experts.size();
  if (published() != nullptr) status.epoch = published()->placement.epoch;

  const std::set<WorkerId> placed = current_.placement.workers();
  const std::vector<double> loads = load_.shares(current_.placement, workers_.size());
  for (std::uint32_t index = 0; index < workers_.size(); ++index) {
    const Worker& each = workers_[index];
    if (each.process == Worker::Process::kNone && !each.lost && !each.retired &&
        !placed.contains(WorkerId{index}))
      continue;
    WorkerStatus described = describe_worker(WorkerId{index});
    if (each.connection) described.lease_age = duration_cast<milliseconds>(now - each.last_heard);
    described.load = loads[index];
    if (each.process == Worker::Process::kRunning || each.process == Worker::Process::kStopping) {
      ++status.workers_running;
      status.bytes_resident += each.stats.bytes_resident;
      status.experts_resident += each.stats.experts_resident;
    }
    status.workers.push_back(std::move(described));
  }

  for (const Deployment& each : current_.deployments) {
    status.deployments.push_back(describe_deployment(each, /*pending=*/false));
  }
  if (change_ && (change_->phase == Phase::kLoading || change_->phase == Phase::kGathering)) {
    for (const Deployment& each : change_->operation.deployments) {
      status.deployments.push_back(describe_deployment(each, /*pending=*/true));
    }
  }
  if (published() != nullptr) {
    status.groups = describe_groups();
    for (WorkerId id : placed) {
      const auto& present = published()->workers;
      if (std::any_of(present.begin(), present.end(),
                      [id](const auto& each) { return each.id == id; }))
        continue;
      if (!comes_back(id) && !is_missed(id)) continue;
      LostWorker lost{id, current_.placement.experts_of(id).size(), {}, worker(id).last_loss};
      for (const DeploymentStatus& each : status.deployments) {
        if (std::find(each.lost_workers.begin(), each.lost_workers.end(), id) !=
            each.lost_workers.end()) {
          lost.deployments.push_back(each.served_as);
        }
      }
      status.lost.push_back(std::move(lost));
    }
  }
  count_missing(status);
  status.not_ready = why_not_ready(status.experts_missing);
  status.ready = status.not_ready.empty();
  for (const EpochView& view : history_) {
    EpochStatus epoch{view.placement.epoch, {}, {}};
    for (const WorkerEndpoint& each : view.workers) epoch.workers.push_back(each.id);
    for (const auto& [id, router] : routers_) {
      if (router.active == epoch.epoch) epoch.routers.push_back(id);
    }
    status.epochs.push_back(std::move(epoch));
  }

  for (const auto& [id, router] : routers_) {
    status.routers.push_back({id, router.hello.http_address, router.hello.pid, router.active,
                              router.stats, router.connection.has_value()});
  }
  if (change_) {
    status.operation = operation(change_->operation.id);
    status.operations.push_back(*status.operation);
  }
  for (const Operation& each : queue_) status.operations.push_back(describe(each));
  for (auto each = ended_.rbegin(); each != ended_.rend(); ++each)
    status.operations.push_back(describe(*each));
  status.queued_operations = queue_.size();
  for (const auto& layer : config_.model.layers) {
    status.routed_experts += static_cast<std::uint64_t>(layer.num_routed);
    status.routed_bytes += layer.expert_bytes * static_cast<std::uint64_t>(layer.num_routed);
  }
  status.operations_ended = operations_ended_;
  status.moved = moved_;
  status.epoch_changes = epoch_changes_;
  status.worker_losses = worker_losses_;
  status.worker_restarts = worker_restarts_;
  return status;
}

}  // namespace moiety::coordinator
