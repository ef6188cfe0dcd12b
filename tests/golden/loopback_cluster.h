#pragma once

#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "fabric/loopback/loopback.h"
#include "planner/place.h"
#include "router/cluster_moe.h"
#include "tests/golden/golden_support.h"
#include "worker/lane_loop.h"

namespace moiety::testing {

/// Workers as threads of this process, each with the experts of one placement, and a router's
/// backend over the loopback fabric. The same code as in the processes; only the transport differs.
class LoopbackCluster {
 public:
  LoopbackCluster(const Embedded& reference,
                  const EpochView& view,
                  CombineMode combine,
                  std::chrono::milliseconds reply_timeout = std::chrono::milliseconds(20000),
                  std::optional<DType> lane_dtype = {})
      : view_(view) {
    for (WorkerId id : view.placement.workers()) {
      auto worker = std::make_unique<Worker>(*reference.checkpoint, reference.model->dtype(),
                                             reference.model->variant());
      worker->port = network_.make_port({id.value, kIncarnation, kToken});
      const std::vector<ExpertId> experts = view.placement.experts_of(id);
      if (auto loaded = worker->store.load(experts); !loaded)
        ADD_FAILURE() << loaded.error().message;
      worker->loop =
          std::make_unique<LaneLoop>(*worker->port, worker->store, worker->runner,
                                     reference.arch().hidden_size, id.value, kIncarnation);
      view_.workers.push_back({id, kIncarnation, worker->port->address()});
      worker->thread = std::thread([loop = worker->loop.get()] { loop->run(); });
      workers_.push_back(std::move(worker));
    }
    ClusterMoeOptions options;
    options.router_id = kRouter;
    options.combine = combine;
    options.dtype = lane_dtype.value_or(reference.model->dtype());
    options.reply_timeout = reply_timeout;
    moe_ = std::make_unique<ClusterMoe>(
        network_.make_router_lane({kRouter, 0, kToken}), options,
        [this](WorkerId id, std::uint64_t, const std::string&) { suspects_.push_back(id); });
  }

  /// Makes the backend use the view (in an engine, the engine does).
  void apply() { EXPECT_TRUE(moe_->apply(view_).empty()); }

  ~LoopbackCluster() {
    moe_.reset();
    for (auto& worker : workers_) {
      worker->loop->stop();
      worker->thread.join();
    }
  }

  ClusterMoe& moe() { return *moe_; }
  const EpochView& view() const { return view_; }
  fabric::LoopbackNetwork& network() { return network_; }
  const std::vector<WorkerId>& suspects() const { return suspects_; }
  std::uint64_t bytes_read() const {
    std::uint64_t bytes = 0;
    for (const auto& worker : workers_) bytes += worker->store.bytes_read();
    return bytes;
  }

  static constexpr std::uint64_t kRouter = 7;
  static constexpr std::uint64_t kIncarnation = 3;
  static constexpr const char* kToken = "secret";

 private:
  struct Worker {
    Worker(const Checkpoint& checkpoint, DType dtype, kernels::Variant variant)
        : pool(1), store(checkpoint, dtype), runner(variant, pool) {}
    ThreadPool pool;
    ExpertStore store;
    ExpertRunner runner;
    std::unique_ptr<fabric::WorkerPort> port;
    std::unique_ptr<LaneLoop> loop;
    std::thread thread;
  };
  fabric::LoopbackNetwork network_;
  EpochView view_;
  std::vector<std::unique_ptr<Worker>> workers_;
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

}  // namespace moiety::testing
