#include "router/engine.h"

#include <gtest/gtest.h>

#include <future>

#include "tests/router/engine_support.h"

namespace moiety {
namespace {

using testing::EngineTest;
using testing::Heard;
using testing::must;

TEST_F(EngineTest, MaskedMassIsZeroForTheFullModelAndPositiveForASubset) {
  const auto engine = make_engine();
  for (std::int32_t i = 0; i < 2; ++i) {
    Heard heard;
    must(engine->submit(request(i), heard.callbacks()));
    const Finish finish = heard.wait_end();
    ASSERT_TRUE(finish.masked_mass.has_value());
    if (i == 0) {
      EXPECT_EQ(*finish.masked_mass, 0);
    } else {
      EXPECT_GT(*finish.masked_mass, 0.05);
      EXPECT_LT(*finish.masked_mass, 1);
    }
  }
}

TEST_F(EngineTest, StopsAtAStopIdWithoutReportingItAsText) {
  const auto engine = make_engine();
  Heard free;
  must(engine->submit(request(0), free.callbacks()));
  free.wait_end();
  const std::vector<std::int32_t> tokens = free.tokens();
  GenerateRequest stopping = request(0);
  stopping.stop_ids = {tokens[4]};
  Heard heard;
  must(engine->submit(stopping, heard.callbacks()));
  const Finish finish = heard.wait_end();
  EXPECT_EQ(finish.reason, FinishReason::kStop);
  const auto first = std::find(tokens.begin(), tokens.end(), tokens[4]);
  EXPECT_EQ(heard.tokens(), std::vector<std::int32_t>(tokens.begin(), first));
  EXPECT_EQ(finish.completion_tokens, first - tokens.begin() + 1);
}

TEST_F(EngineTest, RefusesWhatItCannotServeAndSaysWhy) {
  Engine engine(*embedded_.model, *embedded_.experts, {.kv_cache_bytes = 2 * block_bytes()},
                nullptr);
  Heard heard;
  EXPECT_EQ(engine.submit(request(0), heard.callbacks()).error().code, ErrorCode::kUnavailable)
      << "no epoch yet";
  apply(engine, view_);
  GenerateRequest bad = request(0);
  bad.prompt.clear();
  EXPECT_EQ(engine.submit(bad, heard.callbacks()).error().code, ErrorCode::kInvalidArgument);
  bad = request(0);
  bad.prompt.push_back(embedded_.arch().vocab_size);
  EXPECT_EQ(engine.submit(bad, heard.callbacks()).error().code, ErrorCode::kInvalidArgument);
  bad = request(0, 1000);
  EXPECT_NE(engine.submit(bad, heard.callbacks()).error().message.find("context of 256"),
            std::string::npos);
  bad = request(0, 60);
  EXPECT_NE(engine.submit(bad, heard.callbacks()).error().message.find("--kv-cache-bytes"),
            std::string::npos);
  bad = request(0);
  bad.deployment = "nothing";
  EXPECT_EQ(engine.submit(bad, heard.callbacks()).error().code, ErrorCode::kNotFound);
}

TEST_F(EngineTest, ADrainingDeploymentFinishesWhatRunsAndTakesNothingNew) {
  const auto engine = make_engine();
  Heard running;
  must(engine->submit(request(1, 200), running.callbacks()));
  running.wait_tokens(1);
  EpochView draining = view_;
  draining.placement.epoch = Epoch{2};
  draining.deployments[1].draining = true;
  apply(*engine, draining);
  EXPECT_EQ(engine->epoch(), Epoch{2});
  Heard refused;
  EXPECT_EQ(engine->submit(request(1), refused.callbacks()).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(running.wait_end().reason, FinishReason::kLength);
  EXPECT_EQ(running.tokens().size(), 200u);
}

TEST_F(EngineTest, CancelsRunningAndWaitingRequests) {
  const auto engine = make_engine({.max_num_seqs = 1});
  Heard first, second;
  const auto running = must(engine->submit(request(0, 220), first.callbacks()));
  const auto waiting = must(engine->submit(request(1, 220), second.callbacks()));
  engine->cancel(waiting);
  EXPECT_EQ(second.wait_end().reason, FinishReason::kCancelled);
  EXPECT_TRUE(second.tokens().empty());
  engine->cancel(running);
  EXPECT_EQ(first.wait_end().reason, FinishReason::kCancelled);
  engine->cancel(9999);  // unknown: ignored
  Heard third;
  must(engine->submit(request(2), third.callbacks()));
  EXPECT_EQ(third.wait_end().reason, FinishReason::kLength);
}

TEST_F(EngineTest, ACancelledRequestHasGivenBackItsBlocksWhenItEnds) {
  const auto engine = make_engine();
  Heard other, heard;
  must(engine->submit(request(0, 220), other.callbacks()));
  const auto id = must(engine->submit(request(2, 220), heard.callbacks()));
  heard.wait_tokens(3);
  engine->cancel(id);
  EXPECT_EQ(heard.wait_end().reason, FinishReason::kCancelled);
  const SchedulerStats running = engine->load().scheduler;
  EXPECT_GT(running.kv_blocks_cached, 0) << "its full blocks are kept for others";
  EXPECT_LE(running.kv_blocks_used, KvCache::blocks_for(3 + 220)) << "those of the other";
  other.wait_end();
  EXPECT_EQ(engine->load().scheduler.kv_blocks_used, 0);
}

TEST_F(EngineTest, ACallbackMayEndItsRequest) {
  const auto engine = make_engine();
  Heard heard;
  RequestCallbacks callbacks = heard.callbacks();
  callbacks.on_token = [hear = callbacks.on_token, count = 0](const SampledToken& token) mutable {
    hear(token);
    return ++count == 3 ? TokenAction::kStop : TokenAction::kContinue;
  };
  must(engine->submit(request(0), std::move(callbacks)));
  const Finish finish = heard.wait_end();
  EXPECT_EQ(finish.reason, FinishReason::kStop);
  EXPECT_EQ(finish.completion_tokens, 3);
  EXPECT_EQ(heard.tokens().size(), 3u);
}

TEST_F(EngineTest, ADeadlineEndsARequestWithATypedError) {
  const auto engine = make_engine();
  GenerateRequest late = request(0);
  late.deadline = Clock::now() - std::chrono::seconds(1);
  Heard heard;
  must(engine->submit(late, heard.callbacks()));
  const Finish finish = heard.wait_end();
  EXPECT_EQ(finish.reason, FinishReason::kError);
  EXPECT_EQ(finish.error.code, ErrorCode::kDeadlineExceeded);
}

TEST_F(EngineTest, DrainingRefusesNewRequestsAndEndsTheOthersAtItsDeadline) {
  Heard finishes, running, waiting, refused;
  auto engine = make_engine({.max_num_seqs = 1});
  must(engine->submit(request(0), finishes.callbacks()));
  engine->drain(Clock::now() + std::chrono::hours(1));
  EXPECT_EQ(engine->submit(request(0), refused.callbacks()).error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(finishes.wait_end().reason, FinishReason::kLength);
  engine.reset();  // two loops would take each other's wake-ups from the one backend

  const auto other = make_engine({.max_num_seqs = 1});
  // Holds the step loop at its first token, so that the request cannot be done before drain().
  std::promise<void> drained;
  RequestCallbacks held = running.callbacks();
  held.on_token = [gate = drained.get_future().share(),
                   hear = held.on_token](const SampledToken& token) {
    gate.wait();
    return hear(token);
  };
  must(other->submit(request(0, 220), std::move(held)));
  must(other->submit(request(1, 220), waiting.callbacks()));
  other->drain(Clock::now());
  drained.set_value();
  for (Heard* heard : {&running, &waiting}) {
    const Finish finish = heard->wait_end();
    EXPECT_EQ(finish.reason, FinishReason::kError);
    EXPECT_EQ(finish.error.code, ErrorCode::kUnavailable);
    EXPECT_LT(heard->tokens().size(), 220u);
  }
  EXPECT_EQ(other->load().running + other->load().waiting, 0u);
}

/// Holds the step loop in the middle of a step from a request's first token on.
class HeldStep {
 public:
  ~HeldStep() { release(); }
  RequestCallbacks callbacks() {
    RequestCallbacks callbacks = heard_.callbacks();
    callbacks.on_token = [this, on_token = callbacks.on_token](const SampledToken& sampled) {
      const TokenAction action = on_token(sampled);
      std::unique_lock lock(mutex_);
      EXPECT_TRUE(wake_.wait_for(lock, std::chrono::seconds(60), [&] { return released_; }));
      return action;
    };
    return callbacks;
  }
  void wait_held() { heard_.wait_tokens(1); }
  void release() {
    const std::lock_guard lock(mutex_);
    released_ = true;
    wake_.notify_all();
  }
  Finish wait_end() { return heard_.wait_end(); }

 private:
  Heard heard_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool released_ = false;
};

TEST_F(EngineTest, AFullQueueRefuses) {
  std::vector<Heard> heard(4);  // outlives the engine, which calls back until it ends
  HeldStep held;
  const auto engine = make_engine({.max_num_seqs = 2, .max_queue = 2});
  must(engine->submit(request(0, 4), held.callbacks()));
  held.wait_held();  // the loop sees none of what follows before it is let go
  must(engine->submit(request(0, 4), heard[0].callbacks()));  // has a seat
  must(engine->submit(request(0, 4), heard[1].callbacks()));
  must(engine->submit(request(0, 4), heard[2].callbacks()));
  const auto refused = engine->submit(request(0, 4), heard[3].callbacks());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(refused.error().message, "2 requests are waiting already: try again later");
  held.release();
  EXPECT_EQ(held.wait_end().reason, FinishReason::kLength);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(heard[i].wait_end().reason, FinishReason::kLength);
  must(engine->submit(request(0, 4), heard[3].callbacks()));
  EXPECT_EQ(heard[3].wait_end().reason, FinishReason::kLength);
}

TEST_F(EngineTest, AQueueOfNoneTakesWhatHasASeat) {
  std::vector<Heard> heard(2);
  HeldStep held;
  const auto engine = make_engine({.max_num_seqs = 2, .max_queue = 0});
  must(engine->submit(request(0, 4), held.callbacks()));
  held.wait_held();
  must(engine->submit(request(0, 4), heard[0].callbacks()));
  EXPECT_EQ(engine->submit(request(0, 4), heard[1].callbacks()).error().code,
            ErrorCode::kResourceExhausted);
  held.release();
  EXPECT_EQ(heard[0].wait_end().reason, FinishReason::kLength);
}

TEST_F(EngineTest, WhoWaitsForBlocksCountsForTheQueuesLimit) {
  std::vector<Heard> heard(3);
  HeldStep first;
  HeldStep large_held;
  const auto engine = make_engine({.max_num_seqs = 8,
                                   .max_queue = 2,
                                   .kv_cache_bytes = 3 * block_bytes(),
                                   .prefix_cache = false});
  GenerateRequest large = request(0, 4);  // all blocks
  large.prompt.resize(40, 5);
  must(engine->submit(request(0, 1), first.callbacks()));
  first.wait_held();
  must(engine->submit(large, large_held.callbacks()));
  must(engine->submit(large, heard[0].callbacks()));
  first.release();  // both come before the scheduler in one step: there are blocks for one
  large_held.wait_held();
  must(engine->submit(large, heard[1].callbacks()));
  EXPECT_EQ(engine->submit(large, heard[2].callbacks()).error().code,
            ErrorCode::kResourceExhausted);
  large_held.release();
  EXPECT_EQ(large_held.wait_end().reason, FinishReason::kLength);
  for (std::size_t i = 0; i < 2; ++i) EXPECT_EQ(heard[i].wait_end().reason, FinishReason::kLength);
}

TEST_F(EngineTest, TheLoadIsThatOfItsEpoch) {
  const auto engine = make_engine();
  EXPECT_EQ(engine->load().epoch, Epoch{1});
  Heard heard;
  must(engine->submit(request(1, 200), heard.callbacks()));
  EXPECT_EQ(engine->load().per_deployment.at("a"), 1u);
  heard.wait_end();
}

TEST_F(EngineTest, MissingExpertsFailTheRequestAndNoOther) {
  ExpertStore part(*embedded_.checkpoint, DType::kBF16);
  EpochView only_a = view_;
  only_a.deployments.erase(only_a.deployments.begin());
  ASSERT_TRUE(part.load(needed_experts(only_a)));
  LocalMoe backend(part, embedded_.model->variant(), *embedded_.pool);
  Engine engine(*embedded_.model, backend, {}, nullptr);
  apply(engine, view_);
  Heard full, subset;
  GenerateRequest all = request(0);
  all.prompt.resize(40, 5);
  must(engine.submit(all, full.callbacks()));
  const Finish finish = full.wait_end();
  EXPECT_EQ(finish.reason, FinishReason::kError);
  EXPECT_EQ(engine.load().scheduler.kv_blocks_cached, 0) << "what failed is not kept";
  EXPECT_EQ(engine.load().scheduler.kv_blocks_used, 0);
  EXPECT_NE(finish.error.message.find("is not loaded here"), std::string::npos);
  must(engine.submit(request(1), subset.callbacks()));
  EXPECT_EQ(subset.wait_end().reason, FinishReason::kLength);
}

}  // namespace
}  // namespace moiety
