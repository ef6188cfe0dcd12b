#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <deque>
#include <map>
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
  /// The processes that take turns in one place.
  struct Router {
    const Embedded* model = nullptr;
    ClusterMoeOptions moe_options;
    EngineOptions options;
    std::uint64_t processes = 0;  // so many so far
    bool attached = false;        // this process has its id, and a lane under it
    std::uint64_t id = 0;         // of the last that had one
    std::unique_ptr<ClusterMoe> moe;
    std::unique_ptr<Engine> engine;  // null: it is dead
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
    moe.local = LocalExpertOptions{
        model.checkpoint.get(), model.model->dtype(), model.model->variant(), model.pool.get(),
        [](Epoch, const Error& why) { ADD_FAILURE() << "a router reads: " << why.message; }};
    Router& router = routers_.emplace_back();
    router.model = &model;
    router.moe_options = std::move(moe);
    router.options = options;
    start_router(static_cast<int>(routers_.size()) - 1);
  }
  /// Another process in the place of one that was killed.
  void start_router(int key) {
    Router& router = routers_.at(static_cast<std::size_t>(key));
    const std::uint64_t process = ++router.processes;
    {
      const std::lock_guard lock(mutex_);
      alive_[key] = process;
    }
    router.attached = false;
    router.moe = std::make_unique<ClusterMoe>(
        nullptr, router.moe_options,
        [this, key, process](WorkerId id, std::uint64_t incarnation, const std::string& why) {
          say(key, process, Suspicion{key, {id, incarnation, why}});
        });
    router.engine =
        std::make_unique<Engine>(*router.model->model, *router.moe, router.options, nullptr);
  }
  /// As SIGKILL, in the midst of whatever it does. Its requests have ended after this, each with
  /// the error that its engine happened to give it.
  void kill_router(int key) {
    Router& router = routers_.at(static_cast<std::size_t>(key));
    {
      const std::lock_guard lock(mutex_);
      alive_.erase(key);
      std::erase_if(said_, [key](const Said& each) {
        return std::visit([key](const auto& what) { return what.router == key; }, each);
      });
    }
    if (router.attached) fleet_.network().kill_router(router.id);
    router.engine.reset();
    router.moe.reset();
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
  void welcome(int key, RouterId id) override {
    Router& router = routers_.at(static_cast<std::size_t>(key));
    if (std::exchange(router.attached, true)) return;
    router.id = id.value;
    router.moe->attach(fleet_.make_lane(id.value), id.value);
  }
  void apply(int router, const EpochView& view) override {
    const std::uint64_t process = routers_.at(static_cast<std::size_t>(router)).processes;
    engine(router).apply(view, [this, router, process](Epoch epoch, std::vector<WorkerId> lost) {
      say(router, process, Activation{router, epoch, std::move(lost)});
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
  /// What a dead process says is not heard.
  void say(int router, std::uint64_t process, Said what) {
    const std::lock_guard lock(mutex_);
    const auto alive = alive_.find(router);
    if (alive == alive_.end() || alive->second != process) return;
    said_.push_back(std::move(what));
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Said> said_;               // guarded by mutex_
  std::size_t tokens_ = 0;              // guarded by mutex_
  std::map<int, std::uint64_t> alive_;  // by router: its process; guarded by mutex_
  LoopbackFleet fleet_;
  std::vector<Router> routers_;  // their callbacks use all of the above
};

}  // namespace moiety::testing
