#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <vector>

#include "router/engine.h"
#include "tests/golden/golden_support.h"

namespace moiety::testing {

/// Collects what one request hears, and waits for its end.
class Heard {
 public:
  RequestCallbacks callbacks() {
    return {[this](const SampledToken& sampled) {
              const std::lock_guard lock(mutex_);
              sampled_.push_back(sampled);
              wake_.notify_all();
              return TokenAction::kContinue;
            },
            [this](const Finish& finish) {
              const std::lock_guard lock(mutex_);
              EXPECT_FALSE(finish_.has_value()) << "a request ends once";
              finish_ = finish;
              wake_.notify_all();
            }};
  }
  bool ended() {
    const std::lock_guard lock(mutex_);
    return finish_.has_value();
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
                               [&] { return sampled_.size() >= count || finish_; }));
  }
  std::vector<SampledToken> sampled() {
    const std::lock_guard lock(mutex_);
    return sampled_;
  }
  std::vector<std::int32_t> tokens() {
    std::vector<std::int32_t> tokens;
    for (const SampledToken& sampled : sampled()) tokens.push_back(sampled.token);
    return tokens;
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<SampledToken> sampled_;
  std::optional<Finish> finish_;
};

/// A golden checkpoint in embedded mode; deployments "" (all experts) and "a".
class EngineTest : public ::testing::Test {
 protected:
  explicit EngineTest(kernels::Variant variant = must(kernels::choose_variant("auto")),
                      DType expert_dtype = DType::kBF16)
      : embedded_(source_path("tests/golden/fixtures/emo"), expert_dtype, variant) {
    view_.placement.epoch = Epoch{1};
    view_.deployments = {{"", planner::keep_all(embedded_.shape), false},
                         {"a", random_kept(embedded_.arch(), 5, 1), false}};
  }

  std::unique_ptr<Engine> make_engine(const EngineOptions& options = {},
                                      EngineObserver* observer = nullptr) {
    auto engine = std::make_unique<Engine>(*embedded_.model, *embedded_.experts, options, observer);
    apply(*engine, view_);
    return engine;
  }

  static void apply(Engine& engine, const EpochView& view) {
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

  std::uint64_t block_bytes() const {
    return KvCache::block_bytes(embedded_.arch(), embedded_.model->dtype());
  }

  Embedded embedded_;
  EpochView view_;
};

}  // namespace moiety::testing
