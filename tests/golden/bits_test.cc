#include <cstdio>
#include <random>

#include "tests/golden/loopback_cluster.h"

namespace moiety::testing {
namespace {

using kernels::Variant;
using planner::PlacementPolicy;

std::vector<std::int32_t> random_tokens(const Architecture& arch,
                                        std::size_t count,
                                        std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::int32_t> tokens(count);
  for (auto& token : tokens)
    token = static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(arch.vocab_size));
  return tokens;
}

/// Sequences of several lengths under the full model and two masks, cut into chunks in different
/// ways.
struct Mixed {
  std::unique_ptr<GateMask> a, b;
  std::vector<Job> jobs;
  Mixed(const Architecture& arch, const EpochView& view) {
    a = make_gate_mask(view.deployments[1].kept, arch);
    b = make_gate_mask(view.deployments[2].kept, arch);
    const GateMask* masks[] = {nullptr, a.get(), b.get()};
    const std::vector<std::vector<std::int32_t>> chunkings = {{1}, {7, 1, 3}, {16}, {1000}, {5, 1}};
    const std::size_t lengths[] = {23, 40, 1, 17, 33, 16};
    for (std::size_t i = 0; i < 6; ++i) {
      jobs.push_back({random_tokens(arch, lengths[i], 100 + i), masks[i % 3],
                      chunkings[i % chunkings.size()]});
    }
  }
};

/// Each job alone, in one chunk.
std::vector<std::vector<float>> run_alone(const Model& model,
                                          MoeBackend& backend,
                                          const std::vector<Job>& jobs) {
  std::vector<std::vector<float>> logits;
  for (const Job& job : jobs)
    logits.push_back(run_jobs(model, backend, {{job.tokens, job.mask}})[0]);
  return logits;
}

void expect_same(const std::vector<std::vector<float>>& actual,
                 const std::vector<std::vector<float>>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i)
    EXPECT_TRUE(same_bits(actual[i], expected[i])) << "sequence " << i;
}

class Bits : public ::testing::TestWithParam<std::tuple<Variant, DType>> {
 protected:
  Variant variant() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
};

TEST_P(Bits, DoNotDependOnBatchChunkingMasksOfOthersOrThreads) {
  for (const char* fixture :
       {"emo", "olmoe", "qwen2_moe", "deepseek", "granitemoe", "small/mixtral-window",
        "small/qwen2_moe-window", "small/qwen3_moe-mixed"}) {
    SCOPED_TRACE(fixture);
    const std::string folder = fixture_folder(fixture);
    Embedded embedded(source_path(folder), dtype(), variant(), 2);
    const EpochView view = three_deployments(embedded, PlacementPolicy::kById, 1);
    const Mixed mixed(embedded.arch(), view);
    const auto alone = run_alone(*embedded.model, *embedded.experts, mixed.jobs);
    expect_same(run_jobs(*embedded.model, *embedded.experts, mixed.jobs), alone);
    Embedded one_thread(source_path(folder), dtype(), variant(), 1);
    expect_same(run_jobs(*one_thread.model, *one_thread.experts, mixed.jobs), alone);
  }
}

constexpr PlacementPolicy kPolicies[] = {PlacementPolicy::kMembership, PlacementPolicy::kById,
                                         PlacementPolicy::kEplb, PlacementPolicy::kEplbHierarchical,
                                         PlacementPolicy::kRoundRobin};

const StepOptions kTwoMicroBatches{.micro_batches = 2};

TEST_P(Bits, AClusterThatCombinesPerExpertEqualsEmbeddedMode) {
  Embedded embedded(source_path("tests/golden/fixtures/emo"), dtype(), variant());
  for (const std::uint32_t num_workers : {1u, 2u, 3u, 4u, 7u}) {
    for (const auto policy : kPolicies) {
      const EpochView view = with_replicas(three_deployments(embedded, policy, num_workers),
                                           policy == PlacementPolicy::kById ? 2 : 1);
      const Mixed mixed(embedded.arch(), view);
      const auto alone = run_alone(*embedded.model, *embedded.experts, mixed.jobs);
      LoopbackCluster cluster(embedded, view, CombineMode::kPerExpert);
      cluster.apply();
      SCOPED_TRACE(std::to_string(num_workers) + " workers, " +
                   std::string(planner::policy_name(policy)));
      expect_same(run_jobs(*embedded.model, cluster.moe(), mixed.jobs), alone);
      expect_same(run_jobs(*embedded.model, cluster.moe(), mixed.jobs, kTwoMicroBatches), alone);
    }
  }
}

TEST_P(Bits, TheSameWithExpertsOnTheRouter) {
  for (const char* fixture : {"emo", "deepseek", "small/qwen2_moe-sparse"}) {
    Embedded embedded(source_path(fixture_folder(fixture)), dtype(), variant());
    const EpochView plain = three_deployments(embedded, PlacementPolicy::kRoundRobin, 3);
    const Mixed mixed(embedded.arch(), plain);
    const auto alone = run_alone(*embedded.model, *embedded.experts, mixed.jobs);
    for (const double share : {0.3, 0.8, 1.0}) {
      SCOPED_TRACE(std::string(fixture) + ", share " + std::to_string(share));
      LoopbackCluster cluster(embedded, with_router_experts(plain, share), CombineMode::kPerExpert);
      cluster.apply();
      expect_same(run_jobs(*embedded.model, cluster.moe(), mixed.jobs), alone);
      expect_same(run_jobs(*embedded.model, cluster.moe(), mixed.jobs, kTwoMicroBatches), alone);
      EXPECT_GT(cluster.moe().stats().local_pairs, 0u);
      EXPECT_EQ(cluster.moe().stats().dispatches == 0, share == 1.0);
      EXPECT_EQ(cluster.moe().held().experts, cluster.view().placement.router_experts.size());
    }
  }
}

TEST_P(Bits, TheSameWhileExpertsMoveToTheRouterAndBack) {
  Embedded embedded(source_path("tests/golden/fixtures/emo"), dtype(), variant());
  const EpochView plain = three_deployments(embedded, PlacementPolicy::kRoundRobin, 2);
  const Mixed mixed(embedded.arch(), plain);
  const auto alone = run_alone(*embedded.model, *embedded.experts, mixed.jobs);
  LoopbackCluster cluster(embedded, plain, CombineMode::kPerExpert);
  cluster.apply();
  for (const double share : {0.5, 0.2, 0.0}) {
    SCOPED_TRACE(share);
    const Epoch epoch{cluster.view().placement.epoch.value + 1};
    cluster.view().placement = with_router_experts(plain, share).placement;
    cluster.view().placement.epoch = epoch;
    // Steps go on while the router reads; the switch is over at some step of them.
    cluster.moe().apply(cluster.view());
    bool over = false;
    expect_same(run_jobs(*embedded.model, cluster.moe(), mixed.jobs, {},
                         [&](std::size_t) {
                           if (!over) over = cluster.moe().applied().has_value();
                         }),
                alone);
    if (!over) {
      EXPECT_TRUE(settle(cluster.moe()).empty());
    }
    const std::uint64_t before = cluster.moe().stats().local_pairs;
    expect_same(run_jobs(*embedded.model, cluster.moe(), mixed.jobs), alone);
    EXPECT_EQ(cluster.moe().stats().local_pairs > before, share > 0);
    EXPECT_EQ(cluster.moe().held().experts, cluster.view().placement.router_experts.size())
        << "what no epoch needs is dropped";
  }
}

TEST(ExpertsOnTheRouter, PerWorkerAddsThemFirstAndAloneTheyAreExact) {
  Embedded embedded(source_path("tests/golden/fixtures/emo"), DType::kBF16,
                    must(kernels::choose_variant("auto")));
  const EpochView plain = three_deployments(embedded, PlacementPolicy::kRoundRobin, 2);
  const Mixed mixed(embedded.arch(), plain);
  for (const double share : {0.5, 1.0}) {
    LoopbackCluster cluster(embedded, with_router_experts(plain, share), CombineMode::kPerWorker);
    cluster.apply();
    const auto logits = run_jobs(*embedded.model, cluster.moe(), mixed.jobs);
    expect_same(logits, run_alone(*embedded.model, cluster.moe(), mixed.jobs));
    if (share == 1.0)
      expect_same(logits, run_alone(*embedded.model, *embedded.experts, mixed.jobs));
  }
}

/// Polls until the router could not read what an epoch wants it to hold. Its switch is not over.
void expect_unreadable(LoopbackCluster& cluster) {
  const Deadline deadline = Clock::now() + std::chrono::seconds(20);
  while (cluster.unreadable().empty() && Clock::now() < deadline) {
    EXPECT_FALSE(cluster.moe().applied().has_value());
    cluster.moe().idle_wait(Clock::now() + std::chrono::milliseconds(10));
  }
  ASSERT_FALSE(cluster.unreadable().empty());
  EXPECT_NE(cluster.unreadable()[0].find("layer 1000"), std::string::npos)
      << cluster.unreadable()[0];
}

TEST(ExpertsOnTheRouter, ThatItCannotReadStayWithTheWorkers) {
  Embedded embedded(source_path("tests/golden/fixtures/emo"), DType::kBF16,
                    must(kernels::choose_variant("auto")));
  const EpochView plain = three_deployments(embedded, PlacementPolicy::kRoundRobin, 2);
  const Mixed mixed(embedded.arch(), plain);
  const auto alone = run_alone(*embedded.model, *embedded.experts, mixed.jobs);
  LoopbackCluster cluster(embedded, plain, CombineMode::kPerExpert);
  cluster.apply();
  const EpochView good = cluster.view();
  cluster.view().placement = with_router_experts(plain, 0.5).placement;
  cluster.view().placement.epoch = Epoch{2};
  cluster.view().placement.router_experts.push_back({1000, 0});  // that no checkpoint has
  cluster.moe().apply(cluster.view());
  expect_unreadable(cluster);
  expect_same(run_jobs(*embedded.model, cluster.moe(), mixed.jobs), alone);
  EXPECT_FALSE(cluster.moe().applied().has_value());
  // Another epoch ends the attempts.
  cluster.view() = good;
  cluster.view().placement.epoch = Epoch{3};
  cluster.apply();
  EXPECT_EQ(cluster.moe().held().experts, 0u);
  expect_same(run_jobs(*embedded.model, cluster.moe(), mixed.jobs), alone);
}

TEST(ExpertsOnTheRouter, ThatItHasNotReadYetAreMissing) {
  Embedded embedded(source_path("tests/golden/fixtures/emo"), DType::kBF16,
                    must(kernels::choose_variant("auto")));
  const EpochView plain = three_deployments(embedded, PlacementPolicy::kRoundRobin, 2);
  LoopbackCluster cluster(embedded, with_router_experts(plain, 1), CombineMode::kPerExpert);
  cluster.view().placement.router_experts.push_back({1000, 0});
  cluster.moe().apply(cluster.view());
  expect_unreadable(cluster);
  const Mixed mixed(embedded.arch(), plain);
  KvCache kv(embedded.arch(), DType::kBF16, 4);
  const auto blocks = must(kv.allocate(4));
  const SequenceChunk chunk{mixed.jobs[0].tokens, 0, blocks, nullptr, SequenceChunk::Logits::kLast};
  const StepResult result = embedded.model->forward({&chunk, 1}, kv, cluster.moe());
  EXPECT_EQ(result.failed.at(0), kRowMissing);
  EXPECT_NE(cluster.moe().failure().message.find("held by this router itself"), std::string::npos)
      << cluster.moe().failure().message;
}

TEST_P(Bits, TheSameForEveryArchitectureRaggedLayersAndMicroBatches) {
  for (const char* fixture : kFixtures) {
    SCOPED_TRACE(fixture);
    Embedded embedded(source_path(fixture_folder(fixture)), dtype(), variant());
    const EpochView view = three_deployments(embedded, PlacementPolicy::kMembership, 3);
    const Mixed mixed(embedded.arch(), view);
    const auto alone = run_alone(*embedded.model, *embedded.experts, mixed.jobs);
    expect_same(run_jobs(*embedded.model, *embedded.experts, mixed.jobs, kTwoMicroBatches), alone);
    LoopbackCluster cluster(embedded, view, CombineMode::kPerExpert);
    cluster.apply();
    expect_same(run_jobs(*embedded.model, cluster.moe(), mixed.jobs), alone);
    expect_same(run_jobs(*embedded.model, cluster.moe(), mixed.jobs, kTwoMicroBatches), alone);
  }
}

INSTANTIATE_TEST_SUITE_P(
    AllVariants,
    Bits,
    ::testing::Combine(::testing::ValuesIn(kernels::supported_variants()),
                       ::testing::Values(DType::kF32, DType::kBF16, DType::kI8)),
    [](const auto& info) {
      return std::string(kernels::variant_name(std::get<0>(info.param))) + "_" +
             std::string(dtype_name(std::get<1>(info.param)));
    });

TEST(BitsOfTheBundledModel, ClusterEqualsEmbeddedModeForEveryPlacement) {
  Embedded embedded(source_path("models/moiety-tiny-emo"), DType::kBF16,
                    must(kernels::choose_variant("auto")));
  for (const std::uint32_t num_workers : {1u, 2u, 3u, 4u, 7u}) {
    for (const auto policy : kPolicies) {
      const EpochView view = three_deployments(embedded, policy, num_workers);
      const Mixed mixed(embedded.arch(), view);
      const auto alone = run_alone(*embedded.model, *embedded.experts, mixed.jobs);
      LoopbackCluster cluster(embedded, view, CombineMode::kPerExpert);
      cluster.apply();
      expect_same(run_jobs(*embedded.model, cluster.moe(), mixed.jobs), alone);
      EXPECT_EQ(cluster.moe().stats().stale_dropped, 0u);
    }
  }
}

// What docs/numerics-and-speed.md states: partial sums are added in worker order instead of slot
// order, in fp32.
constexpr double kPerWorkerWorst = 0.02;

TEST(BitsOfTheBundledModel, CombiningPerWorkerStaysWithinItsBound) {
  Embedded embedded(source_path("models/moiety-tiny-emo"), DType::kBF16,
                    must(kernels::choose_variant("auto")));
  std::vector<std::pair<std::uint32_t, PlacementPolicy>> cases;
  for (const std::uint32_t num_workers : {1u, 2u, 3u, 4u, 7u}) {
    for (const auto policy : kPolicies) cases.emplace_back(num_workers, policy);
  }
  for (const auto& [num_workers, policy] : cases) {
    const EpochView view =
        with_replicas(three_deployments(embedded, policy, num_workers), num_workers == 4 ? 2 : 1);
    const Mixed mixed(embedded.arch(), view);
    const auto alone = run_alone(*embedded.model, *embedded.experts, mixed.jobs);
    LoopbackCluster cluster(embedded, view, CombineMode::kPerWorker);
    cluster.apply();
    const auto logits = run_jobs(*embedded.model, cluster.moe(), mixed.jobs);
    // Whom a row asks does not depend on its batch, so its rounding does not either.
    expect_same(logits, run_alone(*embedded.model, cluster.moe(), mixed.jobs));
    double worst = 0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      double sum = 0, squares = 0;
      for (float v : alone[i]) {
        sum += v;
        squares += double{v} * v;
      }
      const auto n = static_cast<double>(alone[i].size());
      worst = std::max(
          worst, deviation(logits[i], alone[i], std::sqrt(squares / n - sum / n * sum / n)).worst);
    }
    std::printf("per_worker on %u workers, %s: worst %.2g of the spread\n", num_workers,
                std::string(policy_name(policy)).c_str(), worst);
    EXPECT_LE(worst, kPerWorkerWorst);
    if (num_workers == 1) {
      EXPECT_EQ(worst, 0) << "one worker adds in slot order";
    }
  }
}

TEST(Exchange, ATokenGoesToAWorkerOnceAndBytesAreThoseOfThePlacement) {
  Embedded embedded(source_path("models/moiety-tiny-emo"), DType::kBF16,
                    must(kernels::choose_variant("auto")));
  const EpochView view = three_deployments(embedded, PlacementPolicy::kRoundRobin, 4);
  LoopbackCluster cluster(embedded, view, CombineMode::kPerWorker);
  cluster.apply();
  const std::vector<std::int32_t> tokens = random_tokens(embedded.arch(), 50, 5);
  KvCache kv(embedded.arch(), DType::kBF16, 4);
  const auto blocks = must(kv.allocate(4));
  const SequenceChunk chunk{tokens, 0, blocks, nullptr, SequenceChunk::Logits::kNone};
  const StepResult result = embedded.model->forward({&chunk, 1}, kv, cluster.moe());
  // Counted from the gate's choices and the placement.
  std::uint64_t copies = 0, sent = 0, received = 0, messages = 0;
  for (std::size_t layer = 0; layer < result.topk_ids.size(); ++layer) {
    const std::size_t top_k = static_cast<std::size_t>(embedded.arch().layers[layer].moe.top_k);
    std::set<WorkerId> asked;
    for (std::size_t row = 0; row < tokens.size(); ++row) {
      std::set<WorkerId> workers;
      for (std::size_t slot = 0; slot < top_k; ++slot) {
        const auto expert = static_cast<std::size_t>(result.topk_ids[layer][row * top_k + slot]);
        workers.insert(view.placement.owners[layer][expert].at(0));
      }
      copies += workers.size();
      asked.insert(workers.begin(), workers.end());
    }
    messages += asked.size();
    sent += tokens.size() * top_k * 8;  // (expert, weight) pairs
  }
  const std::uint64_t hidden = static_cast<std::uint64_t>(embedded.arch().hidden_size);
  sent += copies * (hidden * 2 + 4) + messages * (16 + 4);  // rows and their offsets, heads
  received = copies * hidden * 4;
  EXPECT_EQ(cluster.moe().stats().row_copies, copies);
  EXPECT_EQ(cluster.moe().stats().dispatches, messages);
  EXPECT_EQ(cluster.moe().stats().bytes_sent, sent);
  EXPECT_EQ(cluster.moe().stats().bytes_received, received);
}

TEST(Workers, ReadOnlyTheBytesOfTheirOwnExperts) {
  Embedded embedded(source_path("models/moiety-tiny-emo"), DType::kBF16,
                    must(kernels::choose_variant("auto")));
  const Architecture& arch = embedded.arch();
  EpochView view;
  view.deployments = {{"a", random_kept(arch, 15, 1), false}};
  planner::PlaceOptions options;
  for (std::uint32_t i = 0; i < 8; ++i) options.workers.push_back(WorkerId{i});
  options.capacity_per_layer = 8;
  view.placement = must(planner::place_experts(embedded.shape, view.deployments, options, {}));
  view.placement.epoch = Epoch{1};
  EXPECT_EQ(view.placement.workers().size(), 2u)
      << "15 routed experts per layer fit two workers of 8";
  LoopbackCluster cluster(embedded, view, CombineMode::kPerWorker);
  std::uint64_t expected = 0;
  for (std::int32_t layer = 0; layer < arch.num_layers(); ++layer) {
    expected += 15 * static_cast<std::uint64_t>(arch.expert_parameters(layer)) * 2;
  }
  EXPECT_EQ(cluster.bytes_read(), expected);
}

TEST(LostWorker, FailsOnlyTheRowsThatNeedItAndNeverHangs) {
  Embedded embedded(source_path("tests/golden/fixtures/emo"), DType::kBF16,
                    must(kernels::choose_variant("auto")));
  EpochView view = three_deployments(embedded, PlacementPolicy::kMembership, 4);
  const Mixed mixed(embedded.arch(), view);
  const auto alone = run_alone(*embedded.model, *embedded.experts, mixed.jobs);
  for (const bool silent : {false, true}) {
    LoopbackCluster cluster(embedded, view, CombineMode::kPerExpert,
                            std::chrono::milliseconds(300));
    cluster.apply();
    // A worker that the full model needs and deployment a does not.
    const std::vector<WorkerId> spared =
        planner::workers_of(view.placement, view.deployments[1].kept);
    std::set<WorkerId> others = view.placement.workers();
    for (WorkerId id : spared) others.erase(id);
    ASSERT_FALSE(others.empty());
    const WorkerId victim = *others.rbegin();
    if (silent) {
      cluster.network().set_partition(LoopbackCluster::kRouter, victim.value, true);
    } else {
      cluster.network().kill(victim.value);
    }
    int failed = 0, right = 0;
    for (std::size_t j = 0; j < mixed.jobs.size(); ++j) {
      const Job& job = mixed.jobs[j];
      KvCache kv(embedded.arch(), DType::kBF16, 4);
      const auto blocks = must(kv.allocate(4));
      const SequenceChunk chunk{job.tokens, 0, blocks, job.mask, SequenceChunk::Logits::kAll};
      cluster.moe().begin_step(j + 1);
      const auto began = Clock::now();
      const StepResult result = embedded.model->forward({&chunk, 1}, kv, cluster.moe());
      EXPECT_LT(Clock::now() - began, std::chrono::seconds(10));
      const auto vocab = static_cast<std::size_t>(embedded.arch().vocab_size);
      bool before_ok = true;  // a row that attends to a failed row is not right either
      for (std::size_t row = 0; row < job.tokens.size(); ++row) {
        if (result.failed[row] != 0) {
          before_ok = false;
          ++failed;
          continue;
        }
        if (!before_ok) continue;
        const std::vector<float> got(
            result.logits.begin() + static_cast<std::ptrdiff_t>(row * vocab),
            result.logits.begin() + static_cast<std::ptrdiff_t>((row + 1) * vocab));
        const std::vector<float> want(
            alone[j].begin() + static_cast<std::ptrdiff_t>(row * vocab),
            alone[j].begin() + static_cast<std::ptrdiff_t>((row + 1) * vocab));
        EXPECT_TRUE(same_bits(got, want)) << "sequence " << j << ", row " << row;
        ++right;
      }
    }
    EXPECT_GT(failed, 0);
    EXPECT_GE(right, 40 + 33) << "deployment a has nothing there";
    EXPECT_EQ(cluster.moe().failure().code, ErrorCode::kWorkerLost);
    ASSERT_EQ(cluster.suspects().size(), 1u);
    EXPECT_EQ(cluster.suspects()[0], victim);
    std::printf("%s: %d rows failed, %d rows right\n", silent ? "silent" : "killed", failed, right);
    if (silent) cluster.network().set_partition(LoopbackCluster::kRouter, victim.value, false);
  }
}

TEST(LostWorker, AWorkerOfAnotherDtypeRefusesInsteadOfRounding) {
  Embedded embedded(source_path("tests/golden/fixtures/emo"), DType::kBF16,
                    must(kernels::choose_variant("auto")));
  const EpochView view = three_deployments(embedded, PlacementPolicy::kById, 1);
  LoopbackCluster cluster(embedded, view, CombineMode::kPerExpert, std::chrono::seconds(20),
                          DType::kF32);
  cluster.apply();
  KvCache kv(embedded.arch(), DType::kBF16, 1);
  const auto blocks = must(kv.allocate(1));
  const std::vector<std::int32_t> tokens = {5, 6, 7};
  const SequenceChunk chunk{tokens, 0, blocks, nullptr, SequenceChunk::Logits::kLast};
  const StepResult result = embedded.model->forward({&chunk, 1}, kv, cluster.moe());
  EXPECT_EQ(result.failed, (std::vector<std::uint8_t>{kRowRefused, kRowRefused, kRowRefused}));
  EXPECT_TRUE(cluster.suspects().empty()) << "the worker is well";
  const Error why = cluster.moe().failure();
  EXPECT_NE(why.message.find("rows come as F32, this worker's experts take BF16"),
            std::string::npos)
      << why.message;
}

/// Does something in the middle of a layer: after everything was sent, before anything was awaited.
class InTheMiddle final : public MoeBackend {
 public:
  InTheMiddle(MoeBackend& inner, std::function<void(int layers_begun)> act)
      : inner_(inner), act_(std::move(act)) {}
  void begin(const MoeLayerInput& input) override {
    inner_.begin(input);
    act_(++begun_);
  }
  void finish(std::span<float> y, std::span<std::uint8_t> failed) override {
    inner_.finish(y, failed);
  }

 private:
  MoeBackend& inner_;
  const std::function<void(int)> act_;
  int begun_ = 0;
};

TEST(LostWorker, AReplicaTakesOverWithinTheLayer) {
  Embedded embedded(source_path("tests/golden/fixtures/emo"), DType::kBF16,
                    must(kernels::choose_variant("auto")));
  const EpochView view =
      with_replicas(three_deployments(embedded, PlacementPolicy::kRoundRobin, 4), 2);
  const Mixed mixed(embedded.arch(), view);
  const auto alone = run_alone(*embedded.model, *embedded.experts, mixed.jobs);
  for (const std::int32_t micro_batches : {1, 2}) {
    for (const bool silent : {false, true}) {
      SCOPED_TRACE(::testing::Message() << micro_batches << (silent ? " silent" : " killed"));
      LoopbackCluster cluster(embedded, view, CombineMode::kPerExpert,
                              std::chrono::milliseconds(300));
      cluster.apply();
      const WorkerId victim{1};
      InTheMiddle backend(cluster.moe(), [&](int layers) {
        // One that is killed must not have answered before.
        if (layers == 4 && !silent)
          cluster.network().drop_next(LoopbackCluster::kRouter, victim.value,
                                      fabric::Direction::kToWorker, 1);
        if (layers != 5) return;
        if (!silent) return cluster.fleet().kill(victim);
        cluster.network().set_partition(LoopbackCluster::kRouter, victim.value, true);
      });
      // run_jobs() expects that no row fails.
      const auto logits =
          run_jobs(*embedded.model, backend, mixed.jobs, {.micro_batches = micro_batches});
      expect_same(logits, alone);
      const BackendStats stats = cluster.moe().stats();
      EXPECT_EQ(stats.lost.at(silent ? "silent" : "connection"), 1u);
      EXPECT_GT(stats.redispatches, 0u);
      EXPECT_EQ(cluster.suspects(), std::vector<WorkerId>{victim});
      cluster.network().set_partition(LoopbackCluster::kRouter, victim.value, false);
    }
  }
}

class LateWorker : public ::testing::Test {
 protected:
  static constexpr WorkerId kVictim{1};

  LateWorker()
      : embedded_(source_path("tests/golden/fixtures/emo"),
                  DType::kBF16,
                  must(kernels::choose_variant("auto"))),
        view_(with_replicas(three_deployments(embedded_, PlacementPolicy::kRoundRobin, 4), 2)),
        mixed_(embedded_.arch(), view_),
        alone_(run_alone(*embedded_.model, *embedded_.experts, mixed_.jobs)) {}

  /// One step; the victim falls behind in its middle.
  void run(LoopbackCluster& cluster, const StepOptions& options, std::function<void()> act) {
    cluster.moe().begin_step(++step_);
    InTheMiddle backend(cluster.moe(), [&](int layers) {
      if (layers == 5) act();
    });
    expect_same(run_jobs(*embedded_.model, backend, mixed_.jobs, options), alone_);
  }

  Embedded embedded_;
  const EpochView view_;
  const Mixed mixed_;
  const std::vector<std::vector<float>> alone_;
  std::uint64_t step_ = 0;
};

TEST_F(LateWorker, OthersAreAskedTooAndWhatItSaysLaterIsDropped) {
  for (const std::int32_t micro_batches : {1, 2}) {
    SCOPED_TRACE(micro_batches);
    LoopbackCluster cluster(embedded_, view_, CombineMode::kPerExpert, std::chrono::seconds(20), {},
                            std::chrono::milliseconds(5));
    cluster.apply();
    const auto delay = [&](int ms) {
      cluster.network().set_delay(LoopbackCluster::kRouter, kVictim.value,
                                  std::chrono::milliseconds(ms));
    };
    run(cluster, {.micro_batches = micro_batches}, [&] { delay(200); });
    const BackendStats late = cluster.moe().stats();
    EXPECT_GT(late.hedges_won, 0u);
    EXPECT_LT(late.hedges, late.layers / 2) << "while it owes an answer, it is not asked";
    delay(0);
    const Deadline deadline = Clock::now() + std::chrono::seconds(20);
    while (cluster.moe().stats().stale_dropped < late.hedges_won && Clock::now() < deadline)
      cluster.moe().idle_wait(Clock::now() + std::chrono::milliseconds(20));
    run(cluster, {.micro_batches = micro_batches}, [] {});
    EXPECT_GE(cluster.moe().stats().stale_dropped, late.hedges_won);
    EXPECT_TRUE(cluster.suspects().empty()) << "it is slow, not lost";
    EXPECT_TRUE(cluster.moe().stats().lost.empty());
  }
}

TEST_F(LateWorker, OneThatNeverAnswersIsLostAllTheSame) {
  LoopbackCluster cluster(embedded_, view_, CombineMode::kPerExpert, std::chrono::milliseconds(300),
                          {}, std::chrono::milliseconds(5));
  cluster.apply();
  run(cluster, {},
      [&] { cluster.network().set_partition(LoopbackCluster::kRouter, kVictim.value, true); });
  EXPECT_GT(cluster.moe().stats().hedges_won, 0u);
  const Deadline deadline = Clock::now() + std::chrono::seconds(20);
  while (cluster.suspects().empty() && Clock::now() < deadline) run(cluster, {}, [] {});
  EXPECT_EQ(cluster.suspects(), std::vector<WorkerId>{kVictim});
  EXPECT_EQ(cluster.moe().stats().lost.at("silent"), 1u);
  cluster.network().set_partition(LoopbackCluster::kRouter, kVictim.value, false);
}

TEST(LostWorker, ANewEpochWithoutItEndsTheWaitAtOnce) {
  Embedded embedded(source_path("tests/golden/fixtures/emo"), DType::kBF16,
                    must(kernels::choose_variant("auto")));
  const EpochView view = three_deployments(embedded, PlacementPolicy::kRoundRobin, 3);
  LoopbackCluster cluster(embedded, view, CombineMode::kPerExpert, std::chrono::seconds(60));
  cluster.apply();
  const WorkerId victim{1};
  cluster.network().set_partition(LoopbackCluster::kRouter, victim.value, true);
  EpochView without = cluster.view();
  std::erase_if(without.workers, [&](const auto& endpoint) { return endpoint.id == victim; });
  ++without.placement.epoch.value;
  std::thread announcer;
  InTheMiddle backend(cluster.moe(), [&](int layers) {
    if (layers == 1) announcer = std::thread([&] { cluster.moe().announce(without); });
  });
  KvCache kv(embedded.arch(), DType::kBF16, 2);
  const auto blocks = must(kv.allocate(2));
  const std::vector<std::int32_t> tokens = random_tokens(embedded.arch(), 20, 3);
  const SequenceChunk chunk{tokens, 0, blocks, nullptr, SequenceChunk::Logits::kNone};
  const auto began = Clock::now();
  const StepResult result = embedded.model->forward({&chunk, 1}, kv, backend);
  announcer.join();
  EXPECT_LT(Clock::now() - began, std::chrono::seconds(20));
  EXPECT_EQ(*std::max_element(result.failed.begin(), result.failed.end()), kRowMissing);
  EXPECT_EQ(cluster.moe().stats().lost.at("epoch"), 1u);
  EXPECT_TRUE(cluster.suspects().empty()) << "the coordinator knows";
}

class Moves : public ::testing::Test {
 protected:
  Moves()
      : embedded_(source_path("tests/golden/fixtures/emo"),
                  DType::kBF16,
                  must(kernels::choose_variant("auto"))) {}
  Embedded embedded_;
};

TEST_F(Moves, SameBitsBeforeDuringAndAfter) {
  const EpochView view = three_deployments(embedded_, PlacementPolicy::kMembership, 4);
  const Mixed mixed(embedded_.arch(), view);
  const auto alone = run_alone(*embedded_.model, *embedded_.experts, mixed.jobs);
  LoopbackCluster cluster(embedded_, view, CombineMode::kPerExpert);
  cluster.apply();
  const WorkerId newcomer{9};
  EpochView next = cluster.view();
  next.placement = shifted(view.placement, 1);
  for (auto& layer : next.placement.owners) {
    for (auto& owners : layer) std::replace(owners.begin(), owners.end(), WorkerId{2}, newcomer);
  }
  bool done = false;
  const auto logits =
      run_jobs(*embedded_.model, cluster.moe(), mixed.jobs, {}, [&](std::size_t step) {
        cluster.moe().begin_step(step + 1);
        if (step == 2) {
          // Make before break: the new owners have the experts, the old ones keep them.
          cluster.fleet().start(newcomer, 1, next.placement.experts_of(newcomer));
          for (const WorkerId id : view.placement.workers())
            cluster.fleet().load(id, next.placement.experts_of(id));
          next.workers = cluster.fleet().endpoints();
          std::erase_if(next.workers, [](const auto& each) { return each.id == WorkerId{2}; });
          cluster.network().set_delay(LoopbackCluster::kRouter, newcomer.value,
                                      std::chrono::milliseconds(2));
          cluster.moe().apply(next);
          EXPECT_FALSE(cluster.moe().applied().has_value()) << "the newcomer is not connected";
        } else if (step > 2 && !done) {
          if (step == 10) {
            EXPECT_TRUE(settle(cluster.moe()).empty());
            done = true;
          }
          if (const auto lost = cluster.moe().applied()) {
            EXPECT_TRUE(lost->empty());
            done = true;
          }
          if (!done) return;
          cluster.fleet().kill(WorkerId{2});
          for (const WorkerEndpoint& worker : next.workers)
            cluster.fleet().keep_only(worker.id, next.placement.experts_of(worker.id));
        }
      });
  EXPECT_TRUE(done);
  expect_same(logits, alone);
  expect_same(run_jobs(*embedded_.model, cluster.moe(), mixed.jobs), alone);
  EXPECT_TRUE(cluster.suspects().empty());
}

TEST_F(Moves, OldOwnersServeUntilANewOneAnswersOrIsGivenUp) {
  const EpochView view = three_deployments(embedded_, PlacementPolicy::kById, 2);
  const Mixed mixed(embedded_.arch(), view);
  const auto alone = run_alone(*embedded_.model, *embedded_.experts, mixed.jobs);
  LoopbackCluster cluster(embedded_, view, CombineMode::kPerExpert);
  cluster.apply();
  const WorkerId silent{5};
  EpochView next = cluster.view();
  ++next.placement.epoch.value;
  for (auto& layer : next.placement.owners) {
    for (auto& owners : layer) std::replace(owners.begin(), owners.end(), WorkerId{1}, silent);
  }
  cluster.fleet().start(silent, 1, next.placement.experts_of(silent));
  cluster.network().set_partition(LoopbackCluster::kRouter, silent.value, true);
  next.workers = {cluster.fleet().endpoint(WorkerId{0}), cluster.fleet().endpoint(silent)};
  cluster.moe().apply(next);
  // Its hello is never answered; nobody waits for it.
  expect_same(run_jobs(*embedded_.model, cluster.moe(), mixed.jobs), alone);
  EXPECT_EQ(settle(cluster.moe()), std::vector<WorkerId>{silent});
  EXPECT_EQ(cluster.suspects(), std::vector<WorkerId>{silent});
  // The old owner may drop its experts now: it is not asked any more.
  KvCache kv(embedded_.arch(), DType::kBF16, 2);
  const auto blocks = must(kv.allocate(2));
  const SequenceChunk chunk{mixed.jobs[0].tokens, 0, blocks, nullptr, SequenceChunk::Logits::kNone};
  const StepResult result = embedded_.model->forward({&chunk, 1}, kv, cluster.moe());
  EXPECT_EQ(*std::max_element(result.failed.begin(), result.failed.end()), kRowMissing);
  // The cut heals: the router finds it by itself.
  const std::uint64_t gained = cluster.moe().gained();
  cluster.network().set_partition(LoopbackCluster::kRouter, silent.value, false);
  const Deadline deadline = Clock::now() + std::chrono::seconds(20);
  while (cluster.moe().gained() == gained && Clock::now() < deadline)
    cluster.moe().idle_wait(deadline);
  expect_same(run_jobs(*embedded_.model, cluster.moe(), mixed.jobs), alone);
}

TEST(TwoRouters, AtOnceOnOneFleet) {
  const Variant variant = must(kernels::choose_variant("auto"));
  Embedded first(source_path("tests/golden/fixtures/emo"), DType::kBF16, variant, 1);
  Embedded second(source_path("tests/golden/fixtures/emo"), DType::kBF16, variant, 1);
  const EpochView view = with_replicas(three_deployments(first, PlacementPolicy::kById, 3), 2);
  const Mixed mixed(first.arch(), view);
  const auto alone = run_alone(*first.model, *first.experts, mixed.jobs);
  LoopbackCluster cluster(first, view, CombineMode::kPerExpert);
  cluster.apply();
  ClusterMoeOptions options;
  options.router_id = LoopbackCluster::kRouter + 1;
  options.combine = CombineMode::kPerExpert;
  options.reply.floor = options.reply.cap = std::chrono::seconds(20);
  const auto other = cluster.fleet().make_router(options, {});
  other->apply(cluster.view());
  EXPECT_TRUE(settle(*other).empty());
  std::thread thread([&] {
    for (int round = 0; round < 3; ++round)
      expect_same(run_jobs(*second.model, *other, mixed.jobs), alone);
  });
  for (int round = 0; round < 3; ++round)
    expect_same(run_jobs(*first.model, cluster.moe(), mixed.jobs, kTwoMicroBatches), alone);
  thread.join();
}

TEST(LostWorker, AStaleReplyIsNeverCombined) {
  Embedded embedded(source_path("tests/golden/fixtures/emo"), DType::kBF16,
                    must(kernels::choose_variant("auto")));
  const EpochView view = three_deployments(embedded, PlacementPolicy::kById, 2);
  const Mixed mixed(embedded.arch(), view);
  const auto alone = run_alone(*embedded.model, *embedded.experts, mixed.jobs);
  LoopbackCluster cluster(embedded, view, CombineMode::kPerExpert);
  cluster.apply();
  for (std::size_t j = 0; j < mixed.jobs.size(); ++j) {
    cluster.moe().begin_step(j + 1);
    for (std::uint64_t age = 0; age < 4; ++age) {
      cluster.network().replay(LoopbackCluster::kRouter, 0, fabric::Direction::kToRouter, age);
    }
    const auto logits =
        run_jobs(*embedded.model, cluster.moe(), {{mixed.jobs[j].tokens, mixed.jobs[j].mask}})[0];
    EXPECT_TRUE(same_bits(logits, alone[j]));
  }
  EXPECT_GT(cluster.moe().stats().stale_dropped, 0u);
}

}  // namespace
}  // namespace moiety::testing
