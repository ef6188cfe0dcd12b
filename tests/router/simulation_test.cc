// A whole cluster in one process under a seeded fault script: real engines, real lane loops, the
// loopback fabric, and a coordinator of a few lines that reacts at random. Whatever happens, each
// request ends with exactly the reference's tokens and log-probabilities or with a typed error, and
// within a bounded time.
//
// MOIETY_SIMULATION_SEED=N runs one seed, MOIETY_SIMULATION_SEEDS=N so many.

#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <random>

#include "tests/golden/loopback_cluster.h"
#include "tests/router/engine_support.h"

namespace moiety::testing {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t kKinds = 9;  // of requests
constexpr std::size_t kThreads = 4;
constexpr std::uint64_t kDefaultSeeds = 240;
constexpr auto kBound = 40s;  // no seed takes longer; a request's deadline is shorter

GenerateRequest request_of(std::size_t kind) {
  GenerateRequest request;
  request.deployment = std::vector<std::string>{"", "a", "b"}[kind % 3];
  for (std::size_t j = 0; j < 2 + 9 * (kind % 4); ++j)
    request.prompt.push_back(static_cast<std::int32_t>(3 + (kind % 2 * 100 + j * 17) % 380));
  request.sampling = {kind % 2 == 0 ? 0.0f : 0.9f, 0.95f, kind};
  request.sampling.logprobs = 1;
  request.max_tokens = 8 + static_cast<std::int32_t>(kind % 3) * 6;
  return request;
}

/// What a request must give: tokens, and the bits of their log-probabilities.
using Outcome = std::vector<std::pair<std::int32_t, std::uint32_t>>;

Outcome outcome_of(const std::vector<SampledToken>& sampled) {
  Outcome outcome;
  for (const SampledToken& each : sampled)
    outcome.emplace_back(each.token, std::bit_cast<std::uint32_t>(each.logprob));
  return outcome;
}

/// Counted over all seeds.
struct Counts {
  std::atomic<int> complete{0}, masked{0}, cancelled{0}, lost{0}, late{0};
  std::atomic<int> kills{0}, cuts{0}, drops{0}, moves{0}, fenced{0};
  std::atomic<std::uint64_t> retries{0}, redispatches{0}, hedges{0}, stale{0};
};

/// A model and the answers that it gives when all is well. One simulation at a time.
struct Reference {
  Embedded embedded;
  Embedded second;  // of a second router: one model, one step loop
  EpochView deployments;
  std::vector<Outcome> outcomes;

  Reference()
      : embedded(source_path("tests/golden/fixtures/emo"),
                 DType::kBF16,
                 must(kernels::choose_variant("auto")),
                 1),
        second(source_path("tests/golden/fixtures/emo"),
               DType::kBF16,
               must(kernels::choose_variant("auto")),
               1) {
    deployments.deployments = {{"", planner::keep_all(embedded.shape)},
                               {"a", random_kept(embedded.arch(), 5, 1)},
                               {"b", random_kept(embedded.arch(), 6, 2)}};
    deployments.placement.epoch = Epoch{1};
    Engine engine(*embedded.model, *embedded.experts, {}, nullptr);
    std::promise<void> active;
    engine.apply(deployments, [&](Epoch, const std::vector<WorkerId>&) { active.set_value(); });
    active.get_future().wait();
    for (std::size_t kind = 0; kind < kKinds; ++kind) {
      Heard heard;
      must(engine.submit(request_of(kind), heard.callbacks()));
      EXPECT_EQ(heard.wait_end().reason, FinishReason::kLength);
      outcomes.push_back(outcome_of(heard.sampled()));
    }
  }
};

class Simulation {
 public:
  Simulation(const Reference& reference, std::uint64_t seed, Counts& counts)
      : reference_(reference),
        counts_(counts),
        seed_(seed),
        random_(seed),
        fleet_(reference.embedded, seed) {}

  void run() {
    set_up();
    const std::size_t actions = 5 + random_() % 8;
    for (std::size_t i = 0; i < actions; ++i) {
      if (i < 6) submit();
      act();
      let_run();
      coordinate();
    }
    heal();
    finish();
  }

 private:
  struct Router {
    std::uint64_t id = 0;
    std::unique_ptr<ClusterMoe> moe;
    std::unique_ptr<Engine> engine;
  };
  struct Sent {
    std::size_t kind = 0;
    std::size_t router = 0;
    Engine::RequestId id = 0;
    bool cancelled = false;
    std::unique_ptr<Heard> heard = std::make_unique<Heard>();
  };
  /// What coordinate() hears from other threads.
  struct Inbox {
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<std::pair<WorkerId, std::uint64_t>> suspects;
    std::map<std::size_t, Epoch> active;  // by router
    std::size_t tokens = 0;
  };

  bool chance(int percent) { return random_() % 100 < static_cast<std::uint64_t>(percent); }
  template <class T>
  const T& any(const std::vector<T>& list) {
    return list[random_() % list.size()];
  }

  void set_up() {
    const std::uint32_t num_workers = 2 + random_() % 3;
    const std::size_t num_routers = 1 + random_() % 2;
    replicas_ = 1 + static_cast<std::uint32_t>(random_() % 2);
    for (std::uint32_t i = 0; i < num_workers; ++i) workers_.push_back(WorkerId{i});
    view_ = reference_.deployments;
    // What is worth having, the reference's bits, is tested with kWait; the other policies are
    // there so that they are crossed with everything else.
    for (Deployment& deployment : view_.deployments) {
      const int dice = static_cast<int>(random_() % 10);
      deployment.on_missing = dice < 7   ? MissingPolicy::kWait
                              : dice < 9 ? MissingPolicy::kMask
                                         : MissingPolicy::kFail;
    }
    place(0);
    for (const WorkerId id : workers_) start(id);
    EngineOptions options;
    options.max_num_batched_tokens = chance(50) ? 512 : 9;
    options.micro_batches = chance(50) ? MicroBatches::kOne : MicroBatches::kTwo;
    if (chance(30)) {
      options.kv_cache_bytes =
          8 * KvCache::block_bytes(reference_.embedded.arch(), reference_.embedded.model->dtype());
    }
    for (std::size_t i = 0; i < num_routers; ++i) {
      Router router;
      router.id = 100 + i;
      ClusterMoeOptions moe;
      moe.router_id = router.id;
      moe.combine = CombineMode::kPerExpert;
      moe.reply = {.floor = 40ms, .cap = 150ms};
      moe.reply.hedge_floor = std::chrono::milliseconds(random_() % 4);  // 0: never
      moe.connect_timeout = 80ms;
      router.moe = fleet_.make_router(
          moe, [this](WorkerId id, std::uint64_t incarnation, const std::string&) {
            const std::lock_guard lock(inbox_.mutex);
            inbox_.suspects.emplace_back(id, incarnation);
            inbox_.changed.notify_all();
          });
      const Embedded& model = i == 0 ? reference_.embedded : reference_.second;
      router.engine = std::make_unique<Engine>(*model.model, *router.moe, options, nullptr);
      routers_.push_back(std::move(router));
    }
    publish();
    wait_active(kBound);
  }

  void place(std::uint32_t shift) {
    view_.placement.owners.clear();
    const Architecture& arch = reference_.embedded.arch();
    for (std::int32_t layer = 0; layer < arch.num_layers(); ++layer) {
      auto& owners = view_.placement.owners.emplace_back();
      const auto experts =
          static_cast<std::uint32_t>(arch.layers[static_cast<std::size_t>(layer)].moe.num_routed);
      for (std::uint32_t expert = 0; expert < experts; ++expert) {
        std::set<WorkerId> holders;
        for (std::uint32_t i = 0; i < replicas_; ++i)
          holders.insert(workers_[(expert / 2 + shift + i) % workers_.size()]);
        owners.emplace_back(holders.begin(), holders.end());
      }
    }
  }

  void start(WorkerId id) {
    fleet_.start(id, ++incarnations_, view_.placement.experts_of(id));
    alive_[id] = fleet_.endpoint(id);
  }

  /// A new epoch of the present placement, with the workers that the coordinator believes alive.
  void publish() {
    ++view_.placement.epoch.value;
    view_.workers.clear();
    for (const auto& [id, endpoint] : alive_) view_.workers.push_back(endpoint);
    for (std::size_t i = 0; i < routers_.size(); ++i) {
      routers_[i].engine->apply(view_, [this, i](Epoch epoch, const std::vector<WorkerId>&) {
        const std::lock_guard lock(inbox_.mutex);
        inbox_.active[i] = epoch;
        inbox_.changed.notify_all();
      });
    }
  }

  /// Whether every router confirmed the newest epoch.
  bool wait_active(std::chrono::milliseconds limit) {
    std::unique_lock lock(inbox_.mutex);
    return inbox_.changed.wait_for(lock, limit, [&] {
      for (std::size_t i = 0; i < routers_.size(); ++i) {
        if (inbox_.active[i] != view_.placement.epoch) return false;
      }
      return true;
    });
  }

  void submit() {
    Sent sent;
    sent.kind = random_() % kKinds;
    sent.router = random_() % routers_.size();
    GenerateRequest request = request_of(sent.kind);
    request.deadline = Clock::now() + (chance(5) ? 60ms : std::chrono::milliseconds(kBound / 2));
    RequestCallbacks callbacks = sent.heard->callbacks();
    callbacks.on_token = [this, hear = callbacks.on_token](const SampledToken& token) {
      {
        const std::lock_guard lock(inbox_.mutex);
        ++inbox_.tokens;
        inbox_.changed.notify_all();
      }
      return hear(token);
    };
    sent.id = must(routers_[sent.router].engine->submit(std::move(request), std::move(callbacks)));
    sent_.push_back(std::move(sent));
  }

  void act() {
    const WorkerId worker = any(workers_);
    const std::uint64_t router = any(routers_).id;
    const auto way = chance(50) ? fabric::Direction::kToWorker : fabric::Direction::kToRouter;
    fabric::LoopbackNetwork& network = fleet_.network();
    switch (random_() % 9) {
      case 0:
      case 1:
        ++counts_.kills;
        fleet_.kill(worker);
        break;
      case 2:
        ++counts_.drops;
        network.drop_next(router, worker.value, way, 1 + random_() % 3);
        break;
      case 3:
        ++counts_.drops;
        network.set_drop_probability(router, worker.value, way, chance(50) ? 0.05 : 0);
        break;
      case 4:
        network.set_delay(router, worker.value, std::chrono::microseconds(random_() % 3000));
        break;
      case 5:
        ++counts_.cuts;
        cut_[{router, worker.value}] = !cut_[{router, worker.value}];
        network.set_partition(router, worker.value, cut_[{router, worker.value}]);
        break;
      case 6:
        network.replay(router, worker.value, way, random_() % 4);
        break;
      case 7:
        move();
        break;
      case 8:
        if (!sent_.empty() && chance(40)) {
          Sent& one = sent_[random_() % sent_.size()];
          one.cancelled = true;
          routers_[one.router].engine->cancel(one.id);
        }
        break;
    }
  }

  /// Make before break, as far as the faults let it.
  void move() {
    ++counts_.moves;
    place(static_cast<std::uint32_t>(random_() % workers_.size()));
    for (const WorkerId id : workers_) {
      if (fleet_.runs(id)) fleet_.load(id, view_.placement.experts_of(id));
    }
    revive_dead();
    publish();
    if (!wait_active(chance(50) ? 300ms : 5ms)) return;  // then nothing is dropped
    for (const WorkerId id : workers_) {
      if (fleet_.runs(id)) fleet_.keep_only(id, view_.placement.experts_of(id));
    }
  }

  /// A little time: until some tokens came, or not.
  void let_run() {
    std::unique_lock lock(inbox_.mutex);
    const std::size_t enough = inbox_.tokens + random_() % 12;
    inbox_.changed.wait_for(lock, std::chrono::milliseconds(random_() % 12),
                            [&] { return inbox_.tokens >= enough; });
  }

  /// Starts killed workers that the coordinator knows of. True when there was one.
  bool revive_dead() {
    bool any_dead = false;
    for (const WorkerId id : workers_) {
      if (fleet_.runs(id)) continue;
      any_dead = true;
      start(id);
    }
    return any_dead;
  }

  void coordinate() {
    std::vector<std::pair<WorkerId, std::uint64_t>> suspects;
    {
      const std::lock_guard lock(inbox_.mutex);
      suspects.swap(inbox_.suspects);
    }
    bool change = false;
    for (const auto& [id, incarnation] : suspects) {
      const auto it = alive_.find(id);
      if (it == alive_.end() || it->second.incarnation != incarnation) continue;
      if (fleet_.runs(id) && chance(50)) continue;  // its lease holds: the router tries again
      if (fleet_.runs(id)) {
        ++counts_.fenced;
        fleet_.kill(id);
      }
      alive_.erase(it);
      change = true;
    }
    if (change && chance(70)) publish();
    if (chance(50) && revive_dead()) publish();
  }

  void heal() {
    for (const Router& router : routers_) {
      for (const WorkerId id : workers_) {
        fabric::LoopbackNetwork& network = fleet_.network();
        network.set_partition(router.id, id.value, false);
        network.set_delay(router.id, id.value, 0ns);
        for (const auto way : {fabric::Direction::kToWorker, fabric::Direction::kToRouter}) {
          network.set_drop_probability(router.id, id.value, way, 0);
          network.drop_next(router.id, id.value, way, 0);
        }
      }
    }
    revive_dead();
    for (const WorkerId id : workers_) fleet_.load(id, view_.placement.experts_of(id));
    publish();
  }

  void finish() {
    const Deadline until = Clock::now() + kBound;
    for (Sent& sent : sent_) {
      const Finish finish = sent.heard->wait_end();
      ASSERT_LT(Clock::now(), until) << "seed " << seed_ << ": a request ends too late";
      check(sent, finish);
    }
    EXPECT_TRUE(wait_active(20s)) << "seed " << seed_ << ": the last epoch is not active";
    for (Router& router : routers_) {
      const Engine::Load load = router.engine->load();
      EXPECT_EQ(load.running + load.waiting + load.parked, 0u) << "seed " << seed_;
      EXPECT_EQ(load.scheduler.kv_blocks_used, 0) << "seed " << seed_;
      counts_.retries += load.retries;
      router.engine.reset();
      const BackendStats stats = router.moe->stats();
      counts_.redispatches += stats.redispatches;
      counts_.hedges += stats.hedges_won;
      counts_.stale += stats.stale_dropped;
    }
  }

  void check(const Sent& sent, const Finish& finish) {
    const Outcome outcome = outcome_of(sent.heard->sampled());
    const Outcome& whole = reference_.outcomes[sent.kind];
    const auto policy = view_.deployments[sent.kind % 3].on_missing;
    const std::string where = "seed " + std::to_string(seed_) + ", a request of kind " +
                              std::to_string(sent.kind) + ": " + finish.error.message;
    if (finish.masked_experts > 0) {
      EXPECT_EQ(policy, MissingPolicy::kMask) << where;
      ++counts_.masked;
      return;
    }
    // Whatever came is a beginning of the reference's answer.
    ASSERT_LE(outcome.size(), whole.size()) << where;
    EXPECT_TRUE(std::equal(outcome.begin(), outcome.end(), whole.begin())) << where;
    switch (finish.reason) {
      case FinishReason::kLength:
        EXPECT_EQ(outcome.size(), whole.size()) << where;
        ++counts_.complete;
        break;
      case FinishReason::kCancelled:
        EXPECT_TRUE(sent.cancelled) << where;
        ++counts_.cancelled;
        break;
      case FinishReason::kError:
        if (finish.error.code == ErrorCode::kWorkerLost) {
          EXPECT_EQ(policy, MissingPolicy::kFail) << where;
          ++counts_.lost;
        } else {
          EXPECT_EQ(finish.error.code, ErrorCode::kDeadlineExceeded) << where;
          ++counts_.late;
        }
        break;
      case FinishReason::kStop:
        ADD_FAILURE() << where;
    }
  }

  const Reference& reference_;
  Counts& counts_;
  const std::uint64_t seed_;
  std::mt19937_64 random_;
  Inbox inbox_;
  LoopbackFleet fleet_;
  std::vector<WorkerId> workers_;
  std::uint32_t replicas_ = 1;
  std::uint64_t incarnations_ = 0;
  std::map<WorkerId, WorkerEndpoint> alive_;  // what the coordinator believes
  std::map<std::pair<std::uint64_t, std::uint64_t>, bool> cut_;
  EpochView view_;
  std::vector<Sent> sent_;  // outlives the engines, which call back
  std::vector<Router> routers_;
};

std::uint64_t environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

TEST(ClusterSimulation, EveryRequestEndsRightOrWithATypedError) {
  const std::uint64_t count = environment("MOIETY_SIMULATION_SEEDS", kDefaultSeeds);
  std::uint64_t first = 1, last = count;
  if (std::getenv("MOIETY_SIMULATION_SEED") != nullptr)
    first = last = environment("MOIETY_SIMULATION_SEED", 1);
  Counts counts;
  std::atomic<std::uint64_t> next{first};
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < std::min<std::uint64_t>(kThreads, last - first + 1); ++i) {
    threads.emplace_back([&] {
      const Reference reference;
      for (std::uint64_t seed = next++; seed <= last; seed = next++)
        Simulation(reference, seed, counts).run();
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::printf(
      "seeds %llu to %llu: %d complete, %d masked, %d cancelled, %d worker_lost, %d late; "
      "%d kills, %d cuts, %d drops, %d moves, %d fenced; %llu retries, %llu redispatches, "
      "%llu hedges, %llu stale replies\n",
      static_cast<unsigned long long>(first), static_cast<unsigned long long>(last),
      counts.complete.load(), counts.masked.load(), counts.cancelled.load(), counts.lost.load(),
      counts.late.load(), counts.kills.load(), counts.cuts.load(), counts.drops.load(),
      counts.moves.load(), counts.fenced.load(),
      static_cast<unsigned long long>(counts.retries.load()),
      static_cast<unsigned long long>(counts.redispatches.load()),
      static_cast<unsigned long long>(counts.hedges.load()),
      static_cast<unsigned long long>(counts.stale.load()));
  if (first == last) return;
  // The faults are there, and the cluster survives them.
  const int all = counts.complete + counts.masked + counts.cancelled + counts.lost + counts.late;
  EXPECT_GT(counts.complete, all / 2);
  EXPECT_GT(counts.masked, 0);
  EXPECT_GT(counts.lost, 0);
  EXPECT_GT(counts.retries, count);
  EXPECT_GT(counts.redispatches, count / 4);
  EXPECT_GT(counts.hedges, count / 4);
  EXPECT_GT(counts.stale, 0u);
}

}  // namespace
}  // namespace moiety::testing
