// What survives a crash: taken out of the state machine, and put back.
#include "coordinator/durable.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "coordinator/state.h"

namespace moiety::coordinator {

namespace {

/// FNV-1a, 64 bits: the same in every build, because it is stored.
class Hash {
 public:
  void add(std::uint64_t number) {
    for (int shift = 0; shift < 64; shift += 8)
      add_byte(static_cast<unsigned char>(number >> shift));
  }
  void add(const std::string& text) {
    add(text.size());
    for (char each : text) add_byte(static_cast<unsigned char>(each));
  }
  std::uint64_t value() const { return value_; }

 private:
  void add_byte(unsigned char byte) { value_ = (value_ ^ byte) * 0x100000001b3u; }
  std::uint64_t value_ = 0xcbf29ce484222325u;
};

}  // namespace

std::uint64_t hash_request(const DurableOperation& operation) {
  Hash hash;
  hash.add(static_cast<std::uint64_t>(operation.kind));
  hash.add(operation.name);
  hash.add(operation.worker ? operation.worker->value + std::uint64_t{1} : 0);
  hash.add(operation.deployments.size());
  for (const Deployment& deployment : operation.deployments) {
    hash.add(deployment.name);
    hash.add(static_cast<std::uint64_t>(deployment.on_missing));
    hash.add(deployment.kept.full ? 1 : 0);
    hash.add(deployment.kept.layers.size());
    for (const auto& layer : deployment.kept.layers) {
      hash.add(layer.size());
      for (std::int32_t expert : layer) hash.add(static_cast<std::uint64_t>(expert));
    }
  }
  return hash.value();
}

DurableState ClusterState::durable() const {
  DurableState durable;
  durable.epoch_counter = epoch_counter_;
  durable.incarnation_counter = incarnation_counter_;
  durable.operation_counter = operation_counter_;
  durable.router_counter = router_counter_;
  if (published() != nullptr) {
    durable.published = *published();
    durable.steady = current_.placement;
  }
  for (std::uint32_t index = 0; index < workers_.size(); ++index) {
    const Worker& each = workers_[index];
    if (each.incarnation == 0 && !each.retired) continue;
    DurableWorker worker;
    worker.id = WorkerId{index};
    worker.incarnation = each.incarnation;
    worker.runs = each.process != Worker::Process::kNone;
    worker.ending = worker.runs && each.process != Worker::Process::kRunning;
    if (worker.runs) worker.process = each.identity;
    worker.retired = each.retired;
    worker.losses = each.losses;
    durable.workers.push_back(std::move(worker));
  }
  durable.operations.assign(ended_.begin(), ended_.end());
  if (change_) {
    durable.operations.push_back(change_->operation);
    durable.operations.back().state = OperationState::kRunning;
    durable.operations.back().cost = change_->cost;
  }
  durable.operations.insert(durable.operations.end(), queue_.begin(), queue_.end());
  return durable;
}

void ClusterState::persist() {
  durable_changed_ = false;
  auto state = std::make_shared<const DurableState>(durable());
  if (persisted_ && *persisted_ == *state) return;
  persisted_ = state;
  actions_.insert(actions_.begin(), Persist{std::move(state)});
}

Result<void> ClusterState::check_restorable(const ClusterConfig& config,
                                            const DurableState& durable) {
  const auto is_there = [&config](ExpertId id) { return is_in_model(config.model, id); };
  const auto layers_fit = [&](const Placement& placement) {
    const auto& here = placement.router_experts;
    if (!std::all_of(here.begin(), here.end(), is_there)) return false;
    return std::equal(placement.owners.begin(), placement.owners.end(), config.model.layers.begin(),
                      config.model.layers.end(),
                      [](const auto& owners, const planner::ModelShape::Layer& layer) {
                        return owners.size() == static_cast<std::size_t>(layer.num_routed);
                      });
  };
  if (durable.published &&
      (!layers_fit(durable.published->placement) || !layers_fit(durable.steady))) {
    return fail(ErrorCode::kFailedPrecondition,
                "the saved placement has other layers than the checkpoint; use the checkpoint that "
                "this cluster was started with, or another directory for its state");
  }
  std::uint32_t needed = 0;
  for (const DurableWorker& each : durable.workers) {
    if (each.runs || each.retired) needed = std::max(needed, each.id.value + 1);
  }
  if (durable.published) {
    for (const Placement* placement : {&durable.published->placement, &durable.steady}) {
      const auto workers = placement->workers();
      if (!workers.empty()) needed = std::max(needed, workers.rbegin()->value + 1);
    }
  }
  if (needed > config.max_workers) {
    return fail(ErrorCode::kFailedPrecondition,
                fmt::format("the saved state uses worker {}, but --workers {} allows ids below {}; "
                            "give at least --workers {}",
                            needed - 1, config.max_workers, config.max_workers, needed));
  }
  return {};
}

void ClusterState::restore(DurableState durable) {
  const Result<void> restorable = check_restorable(config_, durable);
  MOIETY_CHECK(restorable, restorable.error().message);
  restored_ = true;
  peers_back_at_ = now_ + config_.reconnect_grace;
  epoch_counter_ = durable.epoch_counter;
  incarnation_counter_ = std::max(incarnation_counter_, durable.incarnation_counter);
  operation_counter_ = durable.operation_counter;
  router_counter_ = durable.router_counter;

  for (const DurableWorker& each : durable.workers) {
    if (each.id.value >= workers_.size()) continue;  // ended long ago
    Worker& restored = worker(each.id);
    restored.incarnation = each.incarnation;
    restored.retired = each.retired;
    restored.losses = each.losses;
    if (!each.runs) continue;
    restored.identity = each.process;
    restored.process = each.ending ? Worker::Process::kKilled : Worker::Process::kRunning;
    restored.started = restored.last_heard = now_;
    restored.expected = !each.ending;
    // It was told to end and perhaps never heard it.
    if (each.ending && !config_.static_fleet) {
      actions_.push_back(KillWorker{each.id, each.incarnation});
    }
  }

  if (durable.published) {
    current_ = {durable.published->deployments, std::move(durable.steady)};
    for (const WorkerEndpoint& endpoint : durable.published->workers) {
      Worker& restored = worker(endpoint.id);
      if (!restored.expected || restored.incarnation != endpoint.incarnation) continue;
      restored.hello.lane_address = endpoint.lane_address;
      restored.may_hold = restored.resident = durable.published->placement.experts_of(endpoint.id);
    }
    const auto& owners = durable.published->placement.owners;
    for (std::size_t layer = 0; layer < owners.size(); ++layer) {
      for (std::size_t expert = 0; expert < owners[layer].size(); ++expert) {
        const auto& steady = current_.placement.owners[layer][expert];
        for (WorkerId owner : owners[layer][expert]) {
          if (std::find(steady.begin(), steady.end(), owner) != steady.end()) continue;
          published_stand_ins_[{static_cast<std::int32_t>(layer),
                                static_cast<std::int32_t>(expert)}] = owner;
        }
      }
    }
    stand_ins_ = published_stand_ins_;
    history_.push_back(std::move(*durable.published));
  }

  for (DurableOperation& each : durable.operations) {
    if (each.state == OperationState::kSucceeded || each.state == OperationState::kFailed) {
      ended_.push_back(std::move(each));
      continue;
    }
    Operation operation;
    operation.resumed = each.state == OperationState::kRunning;
    static_cast<DurableOperation&>(operation) = std::move(each);
    operation.state = OperationState::kQueued;
    queue_.push_back(std::move(operation));
  }
  // An undeploy that was cut short by a shutdown takes its drain with it.
  for (Deployment& each : current_.deployments) {
    const bool goes_on = std::any_of(queue_.begin(), queue_.end(), [&](const Operation& operation) {
      return operation.kind == Kind::kUndeploy && operation.resumed && operation.name == each.name;
    });
    if (!goes_on) each.draining = false;
  }
  note(LogLevel::kInfo,
       fmt::format("restored: epoch {}, {} deployments, {} workers expected back, {} operations to "
                   "go on with",
                   published() != nullptr ? published()->placement.epoch.value : 0,
                   current_.deployments.size(),
                   std::count_if(workers_.begin(), workers_.end(),
                                 [](const Worker& each) { return each.expected; }),
                   queue_.size()));
  dirty_ = true;
}

}  // namespace moiety::coordinator
