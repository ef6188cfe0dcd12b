#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>
#include <variant>
#include <vector>

#include "router/engine.h"
#include "tests/coordinator/simulation.h"
#include "tests/golden/loopback_cluster.h"

namespace moiety::testing {

/// Real workers and routers behind a coordinator::Simulation: lane loops and engines over the
/// loopback fabric. All but the engines' own callbacks is of the simulation's thread.
class RealPeers final : public coordinator::Peers {
 public:
  struct Router {
    std::uint64_t id = 0;
    std::unique_ptr<ClusterMoe> moe;
    std::unique_ptr<Engine> engine;
  };
  /// What engines say, from their threads; `router` is a key of the simulation.
  struct Activation {
    int router = 0;
    Epoch epoch;
    std::vector<WorkerId> lost;
  };
  struct Suspicion {
    int router = 0;
    proto::WorkerSuspect suspect;
  };
  using Said = std::variant<Activation, Suspicion>;

  /// `reference` outlives it.
  RealPeers(const Embedded& reference, std::uint64_t seed) : fleet_(reference, seed) {}

  /// A router that answers with this model, which it has for itself. Its key is the number of those
  /// before it.
  void add_router(const Embedded& model, ClusterMoeOptions moe, const EngineOptions& options) {
    const int key = static_cast<int>(routers_.size());
    moe.local = LocalExpertOptions{
        model.checkpoint.get(), model.model->dtype(), model.model->variant(), model.pool.get(),
        [](Epoch, const Error& why) { ADD_FAILURE() << "a router reads: " << why.message; }};
    Router router;
    router.id = moe.router_id;
    router.moe = fleet_.make_router(
        moe, [this, key](WorkerId id, std::uint64_t incarnation, const std::string& why) {
          say(Suspicion{key, {id, incarnation, why}});
        });
    router.engine = std::make_unique<Engine>(*model.model, *router.moe, options, nullptr);
    routers_.push_back(std::move(router));
  }

  std::vector<Router>& routers() { return routers_; }
  const std::vector<Router>& routers() const { return routers_; }
  fabric::LoopbackNetwork& network() { return fleet_.network(); }

  /// What was said since the last call.
  std::deque<Said> take_said() {
    const std::lock_guard lock(mutex_);
    return std::exchange(said_, {});
  }
  /// Any thread.
  void count_token() {
    const std::lock_guard lock(mutex_);
    ++tokens_;
    changed_.notify_all();
  }
  /// Until so many more tokens came, or something was said, or the time is over.
  void wait(std::size_t tokens, std::chrono::microseconds limit) {
    std::unique_lock lock(mutex_);
    const std::size_t enough = tokens_ + tokens;
    changed_.wait_for(lock, limit, [&] { return tokens_ >= enough || !said_.empty(); });
  }

  std::string begin(WorkerId id, std::uint64_t incarnation) override {
    fleet_.start(id, incarnation, {});
    return fleet_.endpoint(id).lane_address;
  }
  void end(WorkerId id) override { fleet_.kill(id); }
  Result<void> load(WorkerId id, const std::vector<ExpertId>& experts) override {
    fleet_.load(id, experts);
    return {};
  }
  void keep_only(WorkerId id, const std::vector<ExpertId>& experts) override {
    fleet_.keep_only(id, experts);
  }
  std::uint64_t dispatches(WorkerId id) const override { return fleet_.dispatches(id); }
  void apply(int router, const EpochView& view) override {
    engine(router).apply(view, [this, router](Epoch epoch, std::vector<WorkerId> lost) {
      say(Activation{router, epoch, std::move(lost)});
    });
  }
  proto::RouterStats stats(int router) const override {
    const Engine::Load load = engine(router).load();
    proto::RouterStats stats;
    stats.epoch = load.epoch;
    stats.running = load.running;
    stats.waiting = load.waiting;
    stats.parked = load.parked;
    stats.running_per_deployment = load.per_deployment;
    return stats;
  }

 private:
  Engine& engine(int router) const { return *routers_.at(static_cast<std::size_t>(router)).engine; }
  void say(Said what) {
    const std::lock_guard lock(mutex_);
    said_.push_back(std::move(what));
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Said> said_;   // guarded by mutex_
  std::size_t tokens_ = 0;  // guarded by mutex_
  LoopbackFleet fleet_;
  std::vector<Router> routers_;  // their callbacks use all of the above
};

}  // namespace moiety::testing
