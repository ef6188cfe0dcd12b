// The same request gives the same bits, whatever else the step loop does.

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "tests/router/engine_support.h"

namespace moiety {
namespace {

using testing::Heard;
using testing::must;
using testing::random_kept;

/// What must not depend on the rest of the batch.
struct Outcome {
  std::vector<std::int32_t> tokens;
  std::vector<std::uint32_t> logprob_bits;  // of each token, then of its `top`
  std::uint64_t masked_mass_bits = 0;
  bool operator==(const Outcome&) const = default;
};

Outcome outcome_of(Heard& heard) {
  const Finish finish = heard.wait_end();
  EXPECT_EQ(finish.reason, FinishReason::kLength) << finish.error.message;
  Outcome outcome;
  for (const SampledToken& sampled : heard.sampled()) {
    outcome.tokens.push_back(sampled.token);
    outcome.logprob_bits.push_back(std::bit_cast<std::uint32_t>(sampled.logprob));
    for (const TokenLogprob& top : sampled.top) {
      outcome.logprob_bits.push_back(static_cast<std::uint32_t>(top.token));
      outcome.logprob_bits.push_back(std::bit_cast<std::uint32_t>(top.logprob));
    }
  }
  outcome.masked_mass_bits = std::bit_cast<std::uint64_t>(finish.masked_mass.value());
  return outcome;
}

class EngineBitsTest : public testing::EngineTest,
                       public ::testing::WithParamInterface<std::tuple<kernels::Variant, DType>> {
 protected:
  static constexpr std::int32_t kRequests = 12;

  EngineBitsTest() : EngineTest(std::get<0>(GetParam()), std::get<1>(GetParam())) {
    view_.deployments.push_back({"b", random_kept(embedded_.arch(), 6, 2), false});
  }

  /// The i-th of several requests: three deployments, few beginnings, greedy and sampled.
  GenerateRequest numbered(std::int32_t i) const {
    GenerateRequest request = EngineTest::request(i, max_tokens_);
    request.deployment = std::vector<std::string>{"", "a", "b"}[static_cast<std::size_t>(i % 3)];
    request.prompt.clear();
    for (std::int32_t j = 0; j < 2 + prompt_step_ * (i % 5); ++j)
      request.prompt.push_back(3 + (i % 2 * 100 + j * 17) % 380);
    request.sampling.logprobs = 2;
    return request;
  }

  Outcome run(Engine& engine, const GenerateRequest& request) {
    Heard heard;
    must(engine.submit(request, heard.callbacks()));
    return outcome_of(heard);
  }

  /// Each request by itself, in an engine without a prefix cache.
  std::vector<Outcome> alone() {
    const auto engine = make_engine({.prefix_cache = false});
    std::vector<Outcome> outcomes;
    for (std::int32_t i = 0; i < kRequests; ++i) outcomes.push_back(run(*engine, numbered(i)));
    EXPECT_EQ(outcomes[0].tokens.size(), static_cast<std::size_t>(max_tokens_));
    EXPECT_EQ(outcomes[0].logprob_bits.size(), outcomes[0].tokens.size() * 5);
    return outcomes;
  }

  /// All at once, twice (the second time, prompts are cached).
  void expect_same(const std::vector<Outcome>& expected,
                   const EngineOptions& options,
                   SchedulerStats* stats) {
    const auto engine = make_engine(options);
    for (int round = 0; round < 2; ++round) {
      std::vector<Heard> heard(kRequests);
      for (std::int32_t i = 0; i < kRequests; ++i)
        must(engine->submit(numbered(i), heard[static_cast<std::size_t>(i)].callbacks()));
      for (std::size_t i = 0; i < kRequests; ++i) {
        EXPECT_EQ(outcome_of(heard[i]), expected[i]) << "request " << i << ", round " << round;
      }
      const Engine::Load load = engine->load();
      EXPECT_EQ(load.running + load.waiting, 0u);
      EXPECT_TRUE(load.per_deployment.empty());
      EXPECT_EQ(load.scheduler.kv_blocks_used, 0);
    }
    *stats = engine->load().scheduler;
  }

  // Lengths: prompts of 2 to 2 + 4 * prompt_step_ tokens.
  std::int32_t prompt_step_ = 13;
  std::int32_t max_tokens_ = 20;
};

TEST_P(EngineBitsTest, InAnyBatchAndAnyChunksCachedOrNot) {
  const std::vector<Outcome> expected = alone();
  for (const std::int32_t budget : {1, 7, 512}) {
    for (const bool prefix_cache : {true, false}) {
      SCOPED_TRACE(::testing::Message() << "budget " << budget << ", cache " << prefix_cache);
      SchedulerStats stats;
      expect_same(expected,
                  {.max_num_seqs = budget == 7 ? 5 : 64,
                   .max_num_batched_tokens = budget,
                   .prefix_cache = prefix_cache,
                   .micro_batches = prefix_cache ? MicroBatches::kTwo : MicroBatches::kAuto},
                  &stats);
      EXPECT_EQ(stats.preemptions, 0u);
      EXPECT_EQ(stats.prefix_hit_tokens > 0, prefix_cache);
    }
  }
}

TEST_P(EngineBitsTest, PreemptedManyTimes) {
  // Short prompts get in together, grow to 5 or 6 blocks each and push each other out.
  prompt_step_ = 3;
  max_tokens_ = 70;
  const std::vector<Outcome> expected = alone();
  for (const std::uint64_t blocks : {6u, 10u}) {
    for (const bool prefix_cache : {true, false}) {
      for (const std::int32_t budget : {7, 512}) {
        SCOPED_TRACE(::testing::Message()
                     << blocks << " blocks, cache " << prefix_cache << ", budget " << budget);
        SchedulerStats stats;
        expect_same(expected,
                    {.max_num_batched_tokens = budget,
                     .kv_cache_bytes = blocks * block_bytes(),
                     .prefix_cache = prefix_cache},
                    &stats);
        EXPECT_GT(stats.preemptions, 10u);
        EXPECT_EQ(stats.kv_blocks, static_cast<std::int32_t>(blocks));
      }
    }
  }
}

TEST_P(EngineBitsTest, WhatABlockHeldBeforeDoesNotMatter) {
  // A sequence that failed may leave anything behind, values that are not numbers included.
  const Model& model = *embedded_.model;
  const GenerateRequest request = numbered(4);
  const std::vector<std::int32_t> blocks = {1, 0, 3, 2};
  const auto logits = [&](std::byte before) {
    KvCache kv(model.architecture(), model.dtype(), 4);
    for (std::int32_t layer = 0; layer < model.architecture().num_layers(); ++layer) {
      const std::size_t bytes =
          4 * block_bytes() / static_cast<std::size_t>(model.architecture().num_layers());
      std::fill_n(kv.layer(layer).k, bytes / 2, before);
      std::fill_n(kv.layer(layer).v, bytes / 2, before);
    }
    std::vector<float> all;
    const std::span<const std::int32_t> tokens = request.prompt;
    for (std::size_t i = 0; i < tokens.size();) {
      const std::size_t count = std::min<std::size_t>(i < 40 ? 7 : 1, tokens.size() - i);
      const SequenceChunk chunk{tokens.subspan(i, count), static_cast<std::int32_t>(i), blocks,
                                nullptr, SequenceChunk::Logits::kAll};
      const StepResult result = model.forward({&chunk, 1}, kv, *embedded_.experts);
      all.insert(all.end(), result.logits.begin(), result.logits.end());
      i += count;
    }
    return all;
  };
  EXPECT_TRUE(testing::same_bits(logits(std::byte{0}), logits(std::byte{0xff})));
}

TEST_P(EngineBitsTest, AHitIsReportedAndChangesNothing) {
  const auto engine = make_engine();
  GenerateRequest request = numbered(4);
  request.prompt.resize(50, 9);
  Outcome first;
  for (int round = 0; round < 2; ++round) {
    Heard heard;
    must(engine->submit(request, heard.callbacks()));
    const Outcome outcome = outcome_of(heard);
    if (round == 0) first = outcome;
    EXPECT_EQ(outcome, first);
    EXPECT_EQ(heard.wait_end().cached_tokens, round == 0 ? 0 : 48);
    EXPECT_EQ(heard.wait_end().prompt_tokens, 50);
  }
  const auto uncached = make_engine({.prefix_cache = false});
  for (int round = 0; round < 2; ++round) {
    Heard heard;
    must(uncached->submit(request, heard.callbacks()));
    EXPECT_EQ(outcome_of(heard), first);
    EXPECT_EQ(heard.wait_end().cached_tokens, 0);
  }
}

TEST_P(EngineBitsTest, SubsetsShareNoBlocksWhateverTheirNames) {
  GenerateRequest request = numbered(1);
  request.deployment = "a";
  request.prompt.resize(50, 9);
  const auto cached = [&](Engine& engine, const std::string& deployment) {
    request.deployment = deployment;
    Heard heard;
    must(engine.submit(request, heard.callbacks()));
    const Finish finish = heard.wait_end();
    EXPECT_EQ(finish.reason, FinishReason::kLength);
    return finish.cached_tokens;
  };
  const auto engine = make_engine();
  EXPECT_EQ(cached(*engine, "a"), 0);
  EXPECT_EQ(cached(*engine, ""), 0);
  EXPECT_EQ(cached(*engine, "b"), 0);
  EXPECT_EQ(cached(*engine, "a"), 48);

  // The name now stands for other experts, and the old ones are served under another name.
  EpochView changed = view_;
  changed.placement.epoch = Epoch{2};
  changed.deployments[1].kept = random_kept(embedded_.arch(), 5, 77);
  changed.deployments.push_back({"old", view_.deployments[1].kept, false});
  apply(*engine, changed);
  request.deployment = "a";
  const Outcome outcome = run(*engine, request);
  EXPECT_EQ(cached(*engine, "old"), 48);
  view_ = changed;
  request.deployment = "a";
  EXPECT_EQ(outcome, run(*make_engine({.prefix_cache = false}), request));
}

/// Requests that come and go at random in a pool that is too small for them.
TEST_P(EngineBitsTest, UnderARandomScheduleWithASmallPool) {
  prompt_step_ = 8;
  max_tokens_ = 40;
  const std::vector<Outcome> expected = alone();
  std::uint64_t preemptions = 0;
  for (std::uint32_t seed = 0; seed < 4; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    struct Sent {
      std::size_t number;
      Engine::RequestId id;
      bool cancelled = false;
      std::unique_ptr<Heard> heard = std::make_unique<Heard>();
    };
    std::vector<Sent> sent;
    const auto engine =
        make_engine({.max_num_seqs = 6,
                     .max_num_batched_tokens = 1 + static_cast<std::int32_t>(random() % 40),
                     .kv_cache_bytes = (6 + random() % 6) * block_bytes(),
                     .prefix_cache = seed % 2 == 0});
    for (int turn = 0; turn < 40; ++turn) {
      Sent next;
      next.number = random() % kRequests;
      next.id = must(engine->submit(numbered(static_cast<std::int32_t>(next.number)),
                                    next.heard->callbacks()));
      sent.push_back(std::move(next));
      Sent& any = sent[random() % sent.size()];
      if (random() % 4 == 0) {
        any.cancelled = true;
        engine->cancel(any.id);
      } else if (random() % 3 == 0) {
        any.heard->wait_tokens(1 + random() % 20);
      }
    }
    for (Sent& one : sent) {
      const Outcome& whole = expected[one.number];
      if (one.heard->wait_end().reason == FinishReason::kCancelled) {
        EXPECT_TRUE(one.cancelled);
        const std::vector<std::int32_t> tokens = one.heard->tokens();
        ASSERT_LE(tokens.size(), whole.tokens.size());
        EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), whole.tokens.begin()));
      } else {
        EXPECT_EQ(outcome_of(*one.heard), whole);
      }
    }
    EXPECT_EQ(engine->load().scheduler.kv_blocks_used, 0);
    EXPECT_TRUE(engine->load().per_deployment.empty());
    preemptions += engine->load().scheduler.preemptions;
  }
  EXPECT_GT(preemptions, 0u);
}

/// What people serve with: BF16 on every variant that the machine has, the other types on the best.
std::vector<std::tuple<kernels::Variant, DType>> served() {
  std::vector<std::tuple<kernels::Variant, DType>> all;
  for (const auto variant : kernels::supported_variants()) {
    if (variant != kernels::Variant::kReference) all.emplace_back(variant, DType::kBF16);
  }
  const auto best = must(kernels::choose_variant("auto"));
  all.emplace_back(best, DType::kF32);
  all.emplace_back(best, DType::kI8);
  return all;
}

INSTANTIATE_TEST_SUITE_P(Served,
                         EngineBitsTest,
                         ::testing::ValuesIn(served()),
                         [](const auto& info) {
                           return std::string(kernels::variant_name(std::get<0>(info.param))) +
                                  "_" + std::string(dtype_name(std::get<1>(info.param)));
                         });

}  // namespace
}  // namespace moiety
