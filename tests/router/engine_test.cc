#include "router/engine.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <future>

#include "tests/golden/golden_support.h"

namespace moiety {
namespace {

using testing::Embedded;
using testing::must;
using testing::random_kept;
using testing::source_path;

/// Collects what one request hears, and waits for its end.
class Heard {
 public:
  RequestCallbacks callbacks() {
    return {[this](std::int32_t token) {
              const std::lock_guard lock(mutex_);
              tokens_.push_back(token);
              wake_.notify_all();
            },
            [this](const Finish& finish) {
              const std::lock_guard lock(mutex_);
              finish_ = finish;
              wake_.notify_all();
            }};
  }
  Finish wait_end() {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(
        wake_.wait_for(lock, std::chrono::seconds(60), [&] { return finish_.has_value(); }));
    return finish_.value_or(Finish{});
  }
  void wait_tokens(std::size_t count) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(wake_.wait_for(lock, std::chrono::seconds(60),
                               [&] { return tokens_.size() >= count || finish_; }));
  }
  std::vector<std::int32_t> tokens() {
    const std::lock_guard lock(mutex_);
    return tokens_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::int32_t> tokens_;
  std::optional<Finish> finish_;
};

class EngineTest : public ::testing::Test {
 protected:
  EngineTest()
      : embedded_(source_path("tests/golden/fixtures/emo"),
                  DType::kBF16,
                  must(kernels::choose_variant("auto"))) {
    view_.placement.epoch = Epoch{1};
    view_.deployments = {{"", planner::keep_all(embedded_.shape), false},
                         {"a", random_kept(embedded_.arch(), 5, 1), false}};
  }

  std::unique_ptr<Engine> make_engine(const EngineOptions& options = {}) {
    auto engine = std::make_unique<Engine>(*embedded_.model, *embedded_.experts, options, nullptr);
    apply(*engine, view_);
    return engine;
  }

  void apply(Engine& engine, const EpochView& view) {
    std::mutex mutex;
    std::condition_variable wake;
    bool active = false;
    engine.apply(view, [&](Epoch, const std::vector<WorkerId>&) {
      const std::lock_guard lock(mutex);
      active = true;
      wake.notify_all();
    });
    std::unique_lock lock(mutex);
    ASSERT_TRUE(wake.wait_for(lock, std::chrono::seconds(30), [&] { return active; }));
  }

  static GenerateRequest request(std::int32_t i, std::int32_t max_tokens = 20) {
    GenerateRequest request;
    request.deployment = i % 2 == 0 ? "" : "a";
    for (std::int32_t j = 0; j < 3 + 7 * (i % 5); ++j)
      request.prompt.push_back(3 + (i * 31 + j * 17) % 380);
    request.sampling = {i % 3 == 0 ? 0.0f : 0.9f, 0.95f, static_cast<std::uint64_t>(i)};
    request.max_tokens = max_tokens;
    return request;
  }

  Embedded embedded_;
  EpochView view_;
};

TEST_F(EngineTest, TheSameSeedGivesTheSameTokensAloneAndInAnyBatch) {
  std::vector<std::vector<std::int32_t>> alone;
  {
    const auto engine = make_engine();
    for (std::int32_t i = 0; i < 12; ++i) {
      Heard heard;
      must(engine->submit(request(i), heard.callbacks()));
      EXPECT_EQ(heard.wait_end().reason, FinishReason::kLength);
      alone.push_back(heard.tokens());
      EXPECT_EQ(alone.back().size(), 20u);
    }
  }
  // Small budgets cut prompts into chunks and make sequences wait for each other.
  for (const EngineOptions& options :
       {EngineOptions{}, EngineOptions{.max_num_seqs = 5, .max_num_batched_tokens = 4},
        EngineOptions{.kv_cache_bytes =
                          12 * KvCache::block_bytes(embedded_.arch(), DType::kBF16)}}) {
    const auto engine = make_engine(options);
    std::vector<Heard> heard(12);
    for (std::int32_t i = 0; i < 12; ++i)
      must(engine->submit(request(i), heard[static_cast<std::size_t>(i)].callbacks()));
    for (std::size_t i = 0; i < 12; ++i) {
      EXPECT_EQ(heard[i].wait_end().reason, FinishReason::kLength);
      EXPECT_EQ(heard[i].tokens(), alone[i]) << "request " << i;
    }
    EXPECT_EQ(engine->load().running + engine->load().waiting, 0u);
    EXPECT_TRUE(engine->load().per_deployment.empty());
  }
}

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
  Engine engine(*embedded_.model, *embedded_.experts,
                {.kv_cache_bytes = 2 * KvCache::block_bytes(embedded_.arch(), DType::kBF16)},
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
  const auto engine = make_engine({.max_num_seqs = 1});
  Heard finishes, running, waiting, refused;
  must(engine->submit(request(0), finishes.callbacks()));
  engine->drain(Clock::now() + std::chrono::hours(1));
  EXPECT_EQ(engine->submit(request(0), refused.callbacks()).error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(finishes.wait_end().reason, FinishReason::kLength);

  const auto other = make_engine({.max_num_seqs = 1});
  // Holds the step loop at its first token, so that the request cannot be done before drain().
  std::promise<void> drained;
  RequestCallbacks held = running.callbacks();
  held.on_token = [gate = drained.get_future().share(), hear = held.on_token](std::int32_t token) {
    gate.wait();
    hear(token);
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

TEST_F(EngineTest, AFullQueueRefuses) {
  std::vector<Heard> heard(40);  // outlives the engine, which calls back until it ends
  const auto engine = make_engine({.max_num_seqs = 1, .max_queue = 2});
  int refused = 0;
  for (std::size_t i = 0; i < heard.size(); ++i) {
    const auto id = engine->submit(request(0, 100), heard[i].callbacks());
    if (id) continue;
    EXPECT_EQ(id.error().code, ErrorCode::kResourceExhausted);
    ++refused;
  }
  EXPECT_GT(refused, 0);
  // The destructor ends the others with an error: nobody waits for ever.
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
  must(engine.submit(request(0), full.callbacks()));
  const Finish finish = full.wait_end();
  EXPECT_EQ(finish.reason, FinishReason::kError);
  EXPECT_NE(finish.error.message.find("is not loaded here"), std::string::npos);
  must(engine.submit(request(1), subset.callbacks()));
  EXPECT_EQ(subset.wait_end().reason, FinishReason::kLength);
}

}  // namespace
}  // namespace moiety
