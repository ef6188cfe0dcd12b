#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "fabric/loopback/loopback.h"
#include "planner/place.h"
#include "router/cluster_moe.h"
#include "tests/golden/golden_support.h"
#include "worker/lane_loop.h"

namespace moiety::testing {

/// Workers as threads of this process, over the loopback fabric: the same code as in the processes,
/// only the transport differs. They come, load, drop and die as the test says.
class LoopbackFleet {
 public:
  static constexpr const char* kToken = "secret";

  /// `reference` outlives the fleet.
  explicit LoopbackFleet(const Embedded& reference, std::uint64_t seed = 1)
      : reference_(reference), network_(seed) {}
  ~LoopbackFleet() {
    while (!workers_.empty()) remove(workers_.begin()->first);
  }

  /// Starts a worker; one that runs under this id is killed first.
  void start(WorkerId id, std::uint64_t incarnation, const std::vector<ExpertId>& experts) {
    kill(id);
    auto worker = std::make_unique<Worker>(*reference_.checkpoint, reference_.store->dtype(),
                                           reference_.model->variant());
    worker->port = network_.make_port({id.value, incarnation, kToken});
    worker->endpoint = {id, incarnation, worker->port->address()};
    workers_[id] = std::move(worker);
    load(id, experts);
    Worker& started = *workers_[id];
    started.loop = std::make_unique<LaneLoop>(*started.port, started.store, started.runner,
                                              reference_.arch().hidden_size, id.value, incarnation);
    started.thread = std::thread([loop = started.loop.get()] { loop->run(); });
  }
  /// As SIGKILL: its lanes end.
  void kill(WorkerId id) {
    if (!workers_.contains(id)) return;
    network_.kill(id.value);
    remove(id);
  }
  bool runs(WorkerId id) const { return workers_.contains(id); }
  /// Lane messages that it has answered.
  std::uint64_t dispatches(WorkerId id) const {
    return workers_.at(id)->loop->counters().dispatches;
  }

  void load(WorkerId id, const std::vector<ExpertId>& experts) {
    if (auto loaded = workers_.at(id)->store.load(experts); !loaded)
      ADD_FAILURE() << loaded.error().message;
  }
  void keep_only(WorkerId id, const std::vector<ExpertId>& experts) {
    workers_.at(id)->store.keep_only({experts.begin(), experts.end()});
  }
  const WorkerEndpoint& endpoint(WorkerId id) const { return workers_.at(id)->endpoint; }
  std::vector<WorkerEndpoint> endpoints() const {
    std::vector<WorkerEndpoint> all;
    for (const auto& [id, worker] : workers_) all.push_back(worker->endpoint);
    return all;
  }
  std::uint64_t bytes_read() const {
    std::uint64_t bytes = 0;
    for (const auto& [id, worker] : workers_) bytes += worker->store.bytes_read();
    return bytes;
  }

  /// A router's backend. It must not outlive the fleet.
  std::unique_ptr<ClusterMoe> make_router(ClusterMoeOptions options, SuspectCallback on_suspect) {
    return std::make_unique<ClusterMoe>(make_lane(options.router_id), options,
                                        std::move(on_suspect));
  }
  std::unique_ptr<fabric::RouterLane> make_lane(std::uint64_t router_id) {
    return network_.make_router_lane({router_id, 0, kToken});
  }
  fabric::LoopbackNetwork& network() { return network_; }

 private:
  struct Worker {
    Worker(const Checkpoint& checkpoint, DType dtype, kernels::Variant variant)
        : pool(1), store(checkpoint, dtype), runner(variant, pool) {}
    ThreadPool pool;
    ExpertStore store;
    ExpertRunner runner;
    std::unique_ptr<fabric::WorkerPort> port;
    std::unique_ptr<LaneLoop> loop;
    WorkerEndpoint endpoint;
    std::thread thread;
  };

  void remove(WorkerId id) {
    Worker& worker = *workers_.at(id);
    worker.loop->stop();
    worker.thread.join();
    workers_.erase(id);
  }

  const Embedded& reference_;
  fabric::LoopbackNetwork network_;
  std::map<WorkerId, std::unique_ptr<Worker>> workers_;
};

/// Waits until a backend has switched to the view that it was given; the workers that it could not
/// reach.
inline std::vector<WorkerId> settle(StepBackend& backend) {
  const Deadline deadline = Clock::now() + std::chrono::seconds(20);
  while (Clock::now() < deadline) {
    if (auto lost = backend.applied()) return *lost;
    backend.idle_wait(Clock::now() + std::chrono::milliseconds(50));
  }
  ADD_FAILURE() << "the switch to an epoch has no end";
  return {};
}

/// A fleet that holds the experts of one placement, and one router's backend.
class LoopbackCluster {
 public:
  LoopbackCluster(const Embedded& reference,
                  const EpochView& view,
                  CombineMode combine,
                  std::chrono::milliseconds reply_timeout = std::chrono::milliseconds(20000),
                  std::optional<DType> lane_dtype = {},
                  std::chrono::milliseconds hedge_floor = std::chrono::milliseconds(0))
      : fleet_(reference), view_(view) {
    for (WorkerId id : view.placement.workers())
      fleet_.start(id, kIncarnation, view.placement.experts_of(id));
    view_.workers = fleet_.endpoints();
    ClusterMoeOptions options;
    options.router_id = kRouter;
    options.combine = combine;
    options.dtype = lane_dtype.value_or(reference.model->dtype());
    options.reply.floor = options.reply.cap = reply_timeout;
    options.reply.hedge_floor = hedge_floor;
    options.local = LocalExpertOptions{reference.checkpoint.get(), reference.store->dtype(),
                                       reference.model->variant(), reference.pool.get(),
                                       [this](Epoch, const Error& why) {
                                         const std::lock_guard lock(mutex_);
                                         unreadable_.push_back(why.message);
                                       }};
    moe_ = fleet_.make_router(options, [this](WorkerId id, std::uint64_t, const std::string&) {
      suspects_.push_back(id);
    });
  }

  /// Makes the backend use the view (in an engine, the engine does).
  void apply() {
    moe_->apply(view_);
    EXPECT_TRUE(settle(*moe_).empty());
  }

  ClusterMoe& moe() { return *moe_; }
  const EpochView& view() const { return view_; }
  EpochView& view() { return view_; }
  LoopbackFleet& fleet() { return fleet_; }
  fabric::LoopbackNetwork& network() { return fleet_.network(); }
  const std::vector<WorkerId>& suspects() const { return suspects_; }
  std::uint64_t bytes_read() const { return fleet_.bytes_read(); }
  /// Why the router could not read experts that it shall hold, by attempt.
  std::vector<std::string> unreadable() const {
    const std::lock_guard lock(mutex_);
    return unreadable_;
  }

  static constexpr std::uint64_t kRouter = 7;
  static constexpr std::uint64_t kIncarnation = 3;

 private:
  LoopbackFleet fleet_;
  EpochView view_;
  mutable std::mutex mutex_;
  std::vector<std::string> unreadable_;  // guarded by mutex_
  std::unique_ptr<ClusterMoe> moe_;
  std::vector<WorkerId> suspects_;
};

/// The full model and two random subsets, placed on `num_workers` by a policy.
inline EpochView three_deployments(const Embedded& reference,
                                   planner::PlacementPolicy policy,
                                   std::uint32_t num_workers) {
  const Architecture& arch = reference.arch();
  EpochView view;
  std::int32_t keep = arch.max_routed() / 4;
  for (const LayerDescription& layer : arch.layers) keep = std::max(keep, layer.moe.top_k);
  view.deployments = {{"", planner::keep_all(reference.shape), false},
                      {"a", random_kept(arch, keep, 1), false},
                      {"b", random_kept(arch, keep, 2), false}};
  planner::PlaceOptions options;
  options.policy = policy;
  for (std::uint32_t i = 0; i < num_workers; ++i) options.workers.push_back(WorkerId{i});
  options.capacity_per_layer = (arch.max_routed() + static_cast<std::int32_t>(num_workers) - 1) /
                               static_cast<std::int32_t>(num_workers);
  view.placement = must(planner::place_experts(reference.shape, view.deployments, options, {}));
  view.placement.epoch = Epoch{1};
  return view;
}

/// The same placement with every expert also on the next worker(s).
inline EpochView with_replicas(EpochView view, std::uint32_t replicas) {
  const std::set<WorkerId> all = view.placement.workers();
  const std::vector<WorkerId> workers(all.begin(), all.end());
  for (auto& layer : view.placement.owners) {
    for (auto& owners : layer) {
      if (owners.empty()) continue;
      const auto first = static_cast<std::size_t>(
          std::find(workers.begin(), workers.end(), owners.front()) - workers.begin());
      for (std::uint32_t i = 1; i < replicas; ++i)
        owners.push_back(workers[(first + i) % workers.size()]);
      std::sort(owners.begin(), owners.end());
      owners.erase(std::unique(owners.begin(), owners.end()), owners.end());
    }
  }
  return view;
}

/// The same placement with `share` of each layer's experts on the routers instead: those of the
/// lowest ids.
inline EpochView with_router_experts(EpochView view, double share) {
  for (std::size_t layer = 0; layer < view.placement.owners.size(); ++layer) {
    auto& owners = view.placement.owners[layer];
    const auto count = static_cast<std::size_t>(share * static_cast<double>(owners.size()));
    for (std::size_t expert = 0; expert < count; ++expert) {
      owners[expert].clear();
      view.placement.router_experts.push_back(
          {static_cast<std::int32_t>(layer), static_cast<std::int32_t>(expert)});
    }
  }
  return view;
}

/// The same experts, each on the worker `shift` further.
inline Placement shifted(Placement placement, std::uint32_t shift) {
  const std::set<WorkerId> all = placement.workers();
  const std::vector<WorkerId> workers(all.begin(), all.end());
  for (auto& layer : placement.owners) {
    for (auto& owners : layer) {
      for (WorkerId& owner : owners) {
        const auto at = static_cast<std::size_t>(std::find(workers.begin(), workers.end(), owner) -
                                                 workers.begin());
        owner = workers[(at + shift) % workers.size()];
      }
      std::sort(owners.begin(), owners.end());
    }
  }
  ++placement.epoch.value;
  return placement;
}

}  // namespace moiety::testing
