// A whole cluster in one process under a seeded script of faults: the coordinator's state machine
// with its clock, real engines and real lane loops over the loopback fabric. Whatever happens, each
// request ends with exactly the reference's tokens and log-probabilities or with a typed error, or
// with its router, and in the end the cluster comes to rest in what was asked for. In some seeds
// only routers fail: there nobody else may notice anything.
//
// The control channel, the processes and the coordinator's clock are of one thread and follow from
// the seed; how far engines and workers get between two of its steps does not.
//
// MOIETY_SIMULATION_SEED=N runs one seed and prints what the coordinator decided,
// MOIETY_SIMULATION_SEEDS=N runs so many.

#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <random>
#include <set>

#include "common/log.h"
#include "tests/cluster/real_peers.h"
#include "tests/coordinator/simulation.h"
#include "tests/router/engine_support.h"

namespace moiety::testing {
namespace {

using coordinator::OperationId;
using namespace std::chrono_literals;

constexpr std::size_t kKinds = 9;  // of requests
constexpr std::size_t kThreads = 6;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::uint64_t kDefaultSeeds = 60;  // each takes many times longer
#else
constexpr std::uint64_t kDefaultSeeds = 240;
#endif
constexpr auto kBound = 40s;                // no seed takes longer; a request's deadline is shorter
constexpr std::size_t kLastTicks = 10'000;  // after all faults ended, 500 s of the coordinator's

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
  std::atomic<std::uint64_t> complete{0}, masked{0}, cancelled{0}, lost{0}, late{0}, refused{0};
  std::atomic<std::uint64_t> died{0}, removed{0}, router_kills{0}, router_cuts{0}, lost_leases{0};
  std::atomic<std::uint64_t> kills{0}, pauses{0}, cuts{0}, drops{0}, control_cuts{0}, crashes{0};
  std::atomic<std::uint64_t> fenced{0}, epochs{0}, changes{0}, failed_changes{0};
  std::atomic<std::uint64_t> retries{0}, redispatches{0}, hedges{0}, stale{0}, local_pairs{0};
};

/// A model and the answers that it gives when all is well. One simulation at a time.
struct Reference {
  Embedded embedded;
  Embedded second;  // of a second router: one model, one step loop
  std::vector<Deployment> deployments;
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
    deployments = {{"", planner::keep_all(embedded.shape)},
                   {"a", random_kept(embedded.arch(), 5, 1)},
                   {"b", random_kept(embedded.arch(), 6, 2)}};
    Engine engine(*embedded.model, *embedded.experts, {}, nullptr);
    EpochView view;
    view.placement.epoch = Epoch{1};
    view.deployments = deployments;
    std::promise<void> active;
    engine.apply(view, [&](Epoch, const std::vector<WorkerId>&) { active.set_value(); });
    active.get_future().wait();
    for (std::size_t kind = 0; kind < kKinds; ++kind) {
      Heard heard;
      must(engine.submit(request_of(kind), heard.callbacks()));
      EXPECT_EQ(heard.wait_end().reason, FinishReason::kLength);
      outcomes.push_back(outcome_of(heard.sampled()));
    }
  }
};

class ClusterSimulation {
 public:
  ClusterSimulation(const Reference& reference, std::uint64_t seed, Counts& counts)
      : reference_(reference),
        counts_(counts),
        seed_(seed),
        random_(seed),
        only_routers_fail_(seed % 8 == 0),
        deployments_(reference.deployments),
        peers_(reference.embedded, seed),
        sim_(make_config(), &peers_) {}

  void run() {
    SCOPED_TRACE("seed " + std::to_string(seed_));
    set_up();
    const std::size_t actions = 10 + random_() % 20;
    for (std::size_t i = 0; i < actions; ++i) {
      for (std::size_t requests = only_routers_fail_ ? 3 : 1; requests > 0; --requests) submit();
      act();
      for (std::size_t ticks = 1 + random_() % 6; ticks > 0; --ticks) tick();
    }
    heal();
    finish();
  }
  const std::vector<std::string>& trace() const { return sim_.trace; }

 private:
  struct Sent {
    std::size_t kind = 0;
    int router = 0;
    std::uint64_t process = 0;  // of the router: its incarnation
    Engine::RequestId id = 0;
    bool cancelled = false;
    bool died = false;  // with its router
    bool short_of_time = false;
    std::unique_ptr<Heard> heard = std::make_unique<Heard>();
  };

  bool chance(int percent) { return random_() % 100 < static_cast<std::uint64_t>(percent); }
  template <class T>
  const T& any(const std::vector<T>& list) {
    return list[random_() % list.size()];
  }
  int any_router() { return static_cast<int>(random_() % peers_.routers().size()); }
  Engine& engine_of(int router) {
    return *peers_.routers()[static_cast<std::size_t>(router)].engine;
  }
  WorkerId any_worker() {
    return WorkerId{static_cast<std::uint32_t>(random_() % sim_.config.max_workers)};
  }

  coordinator::ClusterConfig make_config() {
    using planner::PlacementPolicy;
    coordinator::ClusterConfig config;
    config.model = reference_.embedded.shape;
    config.served_name = "emo";
    config.coordinator_instance = "instance";
    config.token = LoopbackFleet::kToken;
    config.max_workers = 2 + static_cast<std::uint32_t>(random_() % 3);
    config.replicas = 1 + static_cast<std::int32_t>(random_() % 2);
    const auto slots = config.replicas * reference_.embedded.arch().max_routed();
    const auto workers = static_cast<std::int32_t>(config.max_workers);
    config.capacity_per_layer =
        (slots + workers - 1) / workers + static_cast<std::int32_t>(random_() % 4);
    config.policy = chance(60) ? PlacementPolicy::kMembership
                               : any(std::vector{PlacementPolicy::kById, PlacementPolicy::kEplb,
                                                 PlacementPolicy::kRoundRobin});
    if (chance(25))
      config.router_expert_bytes = (1 + random_() % 8) * config.model.layers[0].expert_bytes;
    config.static_fleet = chance(20);
    config.restart_workers = !chance(15);
    config.operation_timeout = config.drain_timeout = 20s;
    return config;
  }

  void set_up() {
    slow_control_ = chance(40) && !only_routers_fail_;
    crashes_ = chance(30);
    // What is worth having, the reference's bits, is tested with kWait; the other policies are
    // there so that they are crossed with everything else.
    for (Deployment& deployment : deployments_) {
      const int dice = static_cast<int>(random_() % 10);
      deployment.on_missing = dice < 7   ? MissingPolicy::kWait
                              : dice < 9 ? MissingPolicy::kMask
                                         : MissingPolicy::kFail;
    }
    EngineOptions options;
    options.max_num_batched_tokens = chance(50) ? 512 : 9;
    options.micro_batches = chance(50) ? MicroBatches::kOne : MicroBatches::kTwo;
    if (chance(30)) {
      options.kv_cache_bytes =
          8 * KvCache::block_bytes(reference_.embedded.arch(), reference_.embedded.model->dtype());
    }
    const int num_routers = only_routers_fail_ ? 2 : 1 + static_cast<int>(random_() % 2);
    for (int key = 0; key < num_routers; ++key) add_router(key, options);
    if (sim_.config.static_fleet) join_all();
    operations_.push_back(sim_.start(deployments_));
    wait_for("the first deployments", [this] { return sim_.done(operations_[0]); });
    EXPECT_TRUE(sim_.succeeded(operations_[0])) << sim_.error(operations_[0]);
  }

  void add_router(int key, const EngineOptions& options) {
    ClusterMoeOptions moe;
    moe.combine = CombineMode::kPerExpert;
    moe.reply = {.floor = 40ms, .cap = 150ms};
    moe.reply.hedge_floor = std::chrono::milliseconds(random_() % 4);  // 0: never
    moe.connect_timeout = 80ms;
    if (only_routers_fail_) {  // however busy this machine is, nobody is taken for silent
      moe.reply = {.floor = kBound, .cap = kBound, .hedge_floor = 0ms};
      moe.connect_timeout = kBound;
    }
    peers_.add_router(key == 0 ? reference_.embedded : reference_.second, moe, options);
    const bool has_id = chance(50);
    EXPECT_EQ(has_id ? sim_.add_router(static_cast<std::uint32_t>(100 + key))
                     : sim_.add_router_without_id(),
              key);
  }

  /// Somebody starts what a static fleet lacks.
  void join_all() {
    for (std::uint32_t id = 0; id < sim_.config.max_workers; ++id) {
      if (!sim_.processes.contains(WorkerId{id})) sim_.join(WorkerId{id});
    }
  }

  /// Takes what engines said to their routers' side of the control channel.
  void hear() {
    for (RealPeers::Said& each : peers_.take_said()) {
      if (auto* active = std::get_if<RealPeers::Activation>(&each)) {
        sim_.confirm(active->router, active->epoch, std::move(active->lost));
        sim_.heartbeat_router(active->router);  // the counts by deployment, as of this epoch
        continue;
      }
      auto& [key, suspect] = std::get<RealPeers::Suspicion>(each);
      auto& router = sim_.routers.at(key);
      if (router.connection) router.outbox.push_back(std::move(suspect));
    }
  }

  /// All messages, or some of them in any order between peers.
  void move_messages() {
    if (!slow_control_ || chance(30)) return sim_.run();
    for (int i = 0; i < 4; ++i) {
      const WorkerId id = any_worker();
      if (chance(60)) sim_.step_process(id);
      const auto process = sim_.processes.find(id);
      if (process != sim_.processes.end() && !process->second.frozen && chance(60))
        sim_.deliver(process->second.outbox, process->second.connection);
      const int key = any_router();
      if (chance(60)) sim_.step_router(key);
      if (chance(60)) sim_.deliver_from_router(key);
    }
  }

  /// 50 ms of the coordinator, and a little time of the engines: until some tokens came, or not.
  void tick() {
    hear();
    sim_.pass_time();
    move_messages();
    sim_.tick();
    move_messages();
    if (sim_.config.static_fleet && chance(10)) join_all();
    for (auto& [key, router] : sim_.routers) {
      if (router.lost_lease && lost_lease_.insert({key, router.incarnation}).second)
        ++counts_.lost_leases;
      if (router.dead) {
        if (chance(20)) start_router(key);
      } else if (router.cut_off) {
        router.cut_off = !chance(3);  // one in six outlasts its lease
      } else if (!router.connection && chance(20)) {
        sim_.reconnect_router(key);
      }
    }
    const std::size_t tokens = random_() % 6;
    peers_.wait(tokens, std::chrono::microseconds(random_() % 4000));
  }

  template <class Condition>
  void wait_for(const char* what, const Condition& condition) {
    const Deadline until = Clock::now() + kBound;
    for (std::size_t ticks = 0; !condition(); ++ticks) {
      if (ticks == kLastTicks || Clock::now() > until) {
        ADD_FAILURE() << "still not: " << what;
        return;
      }
      tick();
    }
  }

  void submit() {
    Sent sent;
    sent.kind = random_() % kKinds;
    sent.router = any_router();
    sent.short_of_time = chance(5);
    if (sim_.routers.at(sent.router).dead) return;  // the client finds nobody there
    sent.process = sim_.routers.at(sent.router).incarnation;
    Engine& engine = engine_of(sent.router);
    GenerateRequest request = request_of(sent.kind);
    request.deadline =
        Clock::now() + (sent.short_of_time ? 60ms : std::chrono::milliseconds(kBound / 2));
    RequestCallbacks callbacks = sent.heard->callbacks();
    callbacks.on_token = [this, hear = callbacks.on_token](const SampledToken& token) {
      peers_.count_token();
      return hear(token);
    };
    const bool new_here = engine.epoch().value == 0;
    const auto id = engine.submit(std::move(request), std::move(callbacks));
    if (!id) {  // not deployed just now
      EXPECT_TRUE(id.error().code == ErrorCode::kNotFound ||
                  (new_here && id.error().code == ErrorCode::kUnavailable))
          << id.error().message;
      ++counts_.refused;
      return;
    }
    sent.id = *id;
    sent_.push_back(std::move(sent));
  }

  void act() {
    const std::uint64_t die = random_() % 100;
    if (only_routers_fail_ ? die < 40 : die < 6) return disturb_routers();
    if (!only_routers_fail_ && die < 43) return disturb_lanes();
    if (!only_routers_fail_ && die < 75) return disturb_processes();
    if (die < 95) return ask_for_change();
    if (sent_.empty()) return;
    Sent& one = sent_[random_() % sent_.size()];
    if (one.process != sim_.routers.at(one.router).incarnation || one.died) return;
    one.cancelled = true;
    engine_of(one.router).cancel(one.id);
  }

  void disturb_routers() {
    const int key = any_router();
    coordinator::Simulation::Router& router = sim_.routers.at(key);
    if (router.dead) return start_router(key);
    switch (random_() % 6) {
      case 0:
      case 1:
      case 2:
        kill_router(key);
        if (chance(70)) start_router(key);
        return;
      case 3:
      case 4:  // from the coordinator alone, which hears of it or not
        ++counts_.router_cuts;
        router.cut_off = true;
        if (chance(50)) sim_.close_router(key);
        return;
      case 5:
        router.cut_off = false;
    }
  }

  void kill_router(int key) {
    ++counts_.router_kills;
    for (Sent& sent : sent_) {
      const bool its = sent.router == key && sent.process == sim_.routers.at(key).incarnation;
      sent.died |= its && !sent.heard->ended();
    }
    sim_.kill_router(key, /*unseen=*/chance(30));
    peers_.kill_router(key);
  }

  void start_router(int key) {
    peers_.start_router(key);
    sim_.start_router(key);
  }

  void disturb_lanes() {
    const std::uint64_t worker = any_worker().value;
    const std::uint64_t router = any(peers_.routers()).id;
    const auto way = chance(50) ? fabric::Direction::kToWorker : fabric::Direction::kToRouter;
    fabric::LoopbackNetwork& network = peers_.network();
    switch (random_() % 5) {
      case 0:
        ++counts_.drops;
        return network.drop_next(router, worker, way, 1 + random_() % 3);
      case 1:
        ++counts_.drops;
        return network.set_drop_probability(router, worker, way, chance(50) ? 0.05 : 0);
      case 2:
        return network.set_delay(router, worker, std::chrono::microseconds(random_() % 3000));
      case 3: {
        ++counts_.cuts;
        bool& cut = cut_[{router, worker}];
        cut = !cut;
        return network.set_partition(router, worker, cut);
      }
      case 4:
        network.replay(router, worker, way, random_() % 4);
    }
  }

  void disturb_processes() {
    const WorkerId id = any_worker();
    const auto process = sim_.processes.find(id);
    const bool runs = process != sim_.processes.end();
    switch (random_() % 8) {
      case 0:
      case 1:
      case 2:
        if (!runs) return;
        ++counts_.kills;
        return sim_.kill_process(id);
      case 3:  // as SIGSTOP: what it computes comes late
        if (!runs) return;
        ++counts_.pauses;
        sim_.freeze(id);
        for (const RealPeers::Router& router : peers_.routers())
          peers_.network().set_delay(router.id, id.value, std::chrono::milliseconds(200));
        return;
      case 4:
        thaw();
        return;
      case 5:
        ++counts_.control_cuts;
        if (chance(50)) return sim_.close_router(any_router());
        if (runs && process->second.connection) sim_.break_connection(id);
        return;
      case 6:
        sim_.loads_hang = chance(50);
        sim_.load_error.reset();
        if (chance(50)) sim_.load_error = Error{ErrorCode::kIo, "the script lets loads fail"};
        return;
      case 7:
        if (!crashes_) return;
        ++counts_.crashes;
        if (runs && chance(30)) sim_.end_unseen(id);
        // Anywhere within what the next event calls for.
        if (chance(50)) return sim_.crash_within_next_event(random_() % 5);
        return sim_.crash_coordinator();
    }
  }

  void thaw() {
    for (auto& [id, process] : sim_.processes) process.frozen = false;
    for (const RealPeers::Router& router : peers_.routers()) {
      for (std::uint32_t id = 0; id < sim_.config.max_workers; ++id)
        peers_.network().set_delay(router.id, id, 0ns);
    }
  }

  void ask_for_change() {
    switch (random_() % 4) {
      case 0:
        operations_.push_back(sim_.rebalance());
        return;
      case 1:
        operations_.push_back(chance(50) ? sim_.drain(any_worker()) : sim_.undrain(any_worker()));
        return;
      default: {
        const Deployment& one = any(deployments_);
        const std::vector<Deployment>& present = sim_.state.published()->deployments;
        const bool deployed = std::any_of(present.begin(), present.end(),
                                          [&](const auto& each) { return each.name == one.name; });
        operations_.push_back(deployed ? sim_.undeploy(one.name) : sim_.deploy(one));
      }
    }
  }

  /// All faults end, and what was drained or given up is wanted again.
  void heal() {
    sim_.tick();  // a crash that was still to come
    slow_control_ = false;
    sim_.load_error.reset();
    sim_.loads_hang = false;
    for (auto& [key, router] : sim_.routers) {
      router.cut_off = false;
      if (router.dead) start_router(key);
    }
    thaw();
    for (const RealPeers::Router& router : peers_.routers()) {
      for (std::uint32_t id = 0; id < sim_.config.max_workers; ++id) {
        fabric::LoopbackNetwork& network = peers_.network();
        network.set_partition(router.id, id, false);
        for (const auto way : {fabric::Direction::kToWorker, fabric::Direction::kToRouter}) {
          network.set_drop_probability(router.id, id, way, 0);
          network.drop_next(router.id, id, way, 0);
        }
      }
    }
    if (sim_.config.static_fleet) join_all();
    wait_for("all changes end", [this] { return all_done(); });
    for (std::uint32_t id = 0; id < sim_.config.max_workers; ++id)
      operations_.push_back(sim_.undrain(WorkerId{id}));
    wait_for("nobody is drained any more", [this] { return all_done(); });
  }

  /// What a lost worker held comes back by itself, or with the next change if workers are not
  /// started again.
  void bring_back() {
    const EpochView& view = *sim_.state.published();
    if (sim_.config.restart_workers || !all_done()) return;
    if (view.workers.size() == view.placement.workers().size()) return;
    operations_.push_back(
        std::exchange(last_deployed_, !last_deployed_)
            ? sim_.undeploy("last")
            : sim_.deploy({"last", random_kept(reference_.embedded.arch(), 4, seed_)}));
  }

  bool all_done() const {
    return std::all_of(operations_.begin(), operations_.end(),
                       [this](const OperationId& id) { return sim_.done(id); });
  }

  /// Every process holds what is placed on it, every router uses the published epoch, and the
  /// coordinator knows no router and no epoch besides.
  bool at_rest() const {
    const EpochView& view = *sim_.state.published();
    const coordinator::ClusterStatus status = sim_.status();
    if (!status.ready || view.workers.size() != view.placement.workers().size()) return false;
    if (status.epochs.size() != 1 || status.routers.size() != sim_.routers.size()) return false;
    for (const auto& [key, router] : sim_.routers) {
      const auto known = std::find_if(
          status.routers.begin(), status.routers.end(), [&router = router](const auto& each) {
            return each.id == router.id && each.pid == router.pid && each.connected;
          });
      if (known == status.routers.end()) return false;
    }
    if (!sim_.config.static_fleet && sim_.running() != view.placement.workers()) return false;
    for (const auto& [id, process] : sim_.processes) {
      const auto placed = view.placement.experts_of(id);
      if (process.resident != std::set<ExpertId>(placed.begin(), placed.end())) return false;
    }
    return std::all_of(peers_.routers().begin(), peers_.routers().end(),
                       [&](const RealPeers::Router& router) {
                         return router.engine->epoch() == view.placement.epoch;
                       });
  }

  void finish() {
    wait_for("all requests end and the cluster rests", [this] {
      bring_back();
      return std::all_of(sent_.begin(), sent_.end(),
                         [](const Sent& sent) { return sent.heard->ended(); }) &&
             all_done() && at_rest();
    });
    for (const Sent& sent : sent_) {
      if (sent.heard->ended()) check(sent, sent.heard->wait_end());
    }
    for (auto& [key, process] : sim_.routers) {
      RealPeers::Router& router = peers_.routers()[static_cast<std::size_t>(key)];
      const Engine::Load load = router.engine->load();
      EXPECT_EQ(load.running + load.waiting + load.parked, 0u);
      if (only_routers_fail_ && !lost_lease_.contains({key, process.incarnation})) {
        EXPECT_EQ(load.retries, 0u) << "router " << key << " missed experts";
      }
      EXPECT_EQ(load.scheduler.kv_blocks_used, 0);
      counts_.retries += load.retries;
      router.engine.reset();
      const BackendStats stats = router.moe->stats();
      counts_.redispatches += stats.redispatches;
      counts_.hedges += stats.hedges_won;
      counts_.stale += stats.stale_dropped;
      counts_.local_pairs += stats.local_pairs;
    }
    if (only_routers_fail_) {
      for (const coordinator::WorkerStatus& each : sim_.status().workers)
        EXPECT_EQ(each.losses, 0u) << "worker " << each.id.value << ": " << each.last_loss;
    }
    counts_.fenced += sim_.kills;
    counts_.epochs += sim_.state.published()->placement.epoch.value;
    for (const OperationId& id : operations_)
      ++(sim_.succeeded(id) ? counts_.changes : counts_.failed_changes);
  }

  void check(const Sent& sent, const Finish& finish) {
    const Outcome outcome = outcome_of(sent.heard->sampled());
    const Outcome& whole = reference_.outcomes[sent.kind];
    const auto policy = deployments_[sent.kind % 3].on_missing;
    const std::string where =
        "a request of kind " + std::to_string(sent.kind) + ": " + finish.error.message;
    const bool lost_lease = lost_lease_.contains({sent.router, sent.process});
    if (only_routers_fail_ && !sent.died && !lost_lease) {
      EXPECT_TRUE(finish.reason != FinishReason::kError ||
                  (sent.short_of_time && finish.error.code == ErrorCode::kDeadlineExceeded))
          << where;
      EXPECT_EQ(finish.masked_experts, 0) << where;
    }
    if (finish.masked_experts > 0) {
      EXPECT_EQ(policy, MissingPolicy::kMask) << where;
      ++counts_.masked;
      return;
    }
    // Whatever came is a beginning of the reference's answer.
    ASSERT_LE(outcome.size(), whole.size()) << where;
    EXPECT_TRUE(std::equal(outcome.begin(), outcome.end(), whole.begin())) << where;
    if (sent.died) {  // its client lost the connection
      ++counts_.died;
      return;
    }
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
        } else if (finish.error.code == ErrorCode::kNotFound) {
          // Only an undeploy that could not wait for this router ends its requests.
          EXPECT_TRUE(lost_lease) << where;
          ++counts_.removed;
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
  const bool only_routers_fail_;
  std::vector<Deployment> deployments_;
  bool slow_control_ = false;
  bool crashes_ = false;
  bool last_deployed_ = false;
  std::map<std::pair<std::uint64_t, std::uint64_t>, bool> cut_;
  std::set<std::pair<int, std::uint64_t>> lost_lease_;  // routers' keys and incarnations
  std::vector<Sent> sent_;                              // outlives the engines, which call back
  RealPeers peers_;
  std::vector<OperationId> operations_;
  coordinator::Simulation sim_;
};

std::uint64_t environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

unsigned long long shown(const std::atomic<std::uint64_t>& count) { return count.load(); }

void print(const Counts& c) {
  std::printf(
      "requests: %llu complete, %llu masked, %llu cancelled, %llu worker_lost, %llu late, "
      "%llu removed, %llu died with their router, %llu refused\n",
      shown(c.complete), shown(c.masked), shown(c.cancelled), shown(c.lost), shown(c.late),
      shown(c.removed), shown(c.died), shown(c.refused));
  std::printf(
      "faults: %llu kills, %llu pauses, %llu cuts, %llu drops, %llu control connections, "
      "%llu coordinators, %llu routers killed, %llu cut off and %llu beyond their lease\n",
      shown(c.kills), shown(c.pauses), shown(c.cuts), shown(c.drops), shown(c.control_cuts),
      shown(c.crashes), shown(c.router_kills), shown(c.router_cuts), shown(c.lost_leases));
  std::printf("coordinator: %llu epochs, %llu changes and %llu that failed, %llu workers fenced\n",
              shown(c.epochs), shown(c.changes), shown(c.failed_changes), shown(c.fenced));
  std::printf(
      "routers: %llu retries, %llu redispatches, %llu hedges, %llu stale replies, "
      "%llu pairs of their own\n",
      shown(c.retries), shown(c.redispatches), shown(c.hedges), shown(c.stale),
      shown(c.local_pairs));
}

TEST(ClusterSimulation, EveryRequestEndsRightOrWithATypedError) {
  const std::uint64_t count = environment("MOIETY_SIMULATION_SEEDS", kDefaultSeeds);
  std::uint64_t first = 1, last = count;
  if (std::getenv("MOIETY_SIMULATION_SEED") != nullptr)
    first = last = environment("MOIETY_SIMULATION_SEED", 1);
  Counts counts;
  std::atomic<std::uint64_t> next{first};
  // Makes the logger before there are threads: TSan does not see the lock inside of the library.
  log_debug("{} seeds", last - first + 1);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < std::min<std::uint64_t>(kThreads, last - first + 1); ++i) {
    threads.emplace_back([&] {
      const Reference reference;
      for (std::uint64_t seed = next++; seed <= last; seed = next++) {
        ClusterSimulation simulation(reference, seed, counts);
        simulation.run();
        if (first != last) continue;
        for (const std::string& line : simulation.trace()) std::printf("%s\n", line.c_str());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  print(counts);
  if (first == last) return;
  // The faults are there, and the cluster survives them.
  const std::uint64_t ended =
      counts.complete + counts.masked + counts.cancelled + counts.lost + counts.late + counts.died;
  EXPECT_GT(counts.complete, ended / 2);
  EXPECT_GT(counts.masked, 0u);
  EXPECT_GT(counts.lost, 0u);
  EXPECT_GT(counts.fenced, count / 4);
  EXPECT_GT(counts.changes, count);
  EXPECT_GT(counts.router_kills, count / 4);
  EXPECT_GT(counts.died, count / 20);
  EXPECT_GT(counts.lost_leases, count / 20);
  // These three also depend on how the machine schedules threads: far below what is usual.
  EXPECT_GT(counts.retries, count / 10);
  EXPECT_GT(counts.redispatches, count / 10);
  EXPECT_GT(counts.hedges, count / 10);
  EXPECT_GT(counts.stale, 0u);
  EXPECT_GT(counts.local_pairs, 0u);
}

}  // namespace
}  // namespace moiety::testing
