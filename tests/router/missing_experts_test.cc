// What requests do while experts are on no worker in reach.

#include <gtest/gtest.h>

#include "router/metrics.h"
#include "tests/golden/loopback_cluster.h"
#include "tests/router/engine_support.h"

namespace moiety::testing {
namespace {

using namespace std::chrono_literals;

/// Two workers. Deployment "a" needs the first one only; the full model needs both.
class MissingExperts : public EngineTest {
 protected:
  static constexpr WorkerId kKept{0}, kLost{1};

  MissingExperts() : fleet_(embedded_) {
    view_.placement.epoch = Epoch{1};
    view_.deployments[1].kept = random_kept(embedded_.arch(), 6, 1);
    const auto& kept = view_.deployments[1].kept.layers;
    for (std::size_t layer = 0; layer < kept.size(); ++layer) {
      auto& owners = view_.placement.owners.emplace_back();
      const auto experts = embedded_.arch().layers[layer].moe.num_routed;
      for (std::int32_t expert = 0; expert < experts; ++expert) {
        const bool of_a =
            std::find(kept[layer].begin(), kept[layer].end(), expert) != kept[layer].end();
        owners.push_back({of_a ? kKept : kLost});
      }
    }
    for (const WorkerId id : {kKept, kLost}) fleet_.start(id, 1, view_.placement.experts_of(id));
    view_.workers = fleet_.endpoints();
  }

  void serve(MissingPolicy policy, const EngineOptions& options = {}) {
    for (Deployment& deployment : view_.deployments) deployment.on_missing = policy;
    ClusterMoeOptions moe;
    moe.router_id = 7;
    moe.combine = CombineMode::kPerExpert;
    moe.connect_timeout = 500ms;
    moe_ = fleet_.make_router(moe, {});
    engine_ = std::make_unique<Engine>(*embedded_.model, *moe_, options, nullptr);
    apply(*engine_, view_);
  }

  /// What the coordinator does when it knows of the loss.
  void publish() {
    ++view_.placement.epoch.value;
    view_.workers = fleet_.endpoints();
    apply(*engine_, view_);
  }

  void bring_back() {
    fleet_.start(kLost, ++incarnation_, view_.placement.experts_of(kLost));
    publish();
  }

  void wait_parked(std::uint64_t count) {
    const Deadline deadline = Clock::now() + 20s;
    while (engine_->load().parked != count) {
      ASSERT_LT(Clock::now(), deadline) << engine_->load().parked << " are parked";
      std::this_thread::yield();
    }
  }

  /// Tokens of the same request in embedded mode. Not while the engine has work: they share the
  /// model.
  std::vector<std::int32_t> reference(const GenerateRequest& request) {
    const auto embedded = make_engine();
    Heard heard;
    must(embedded->submit(request, heard.callbacks()));
    heard.wait_end();
    return heard.tokens();
  }

  LoopbackFleet fleet_;
  std::uint64_t incarnation_ = 1;
  std::unique_ptr<ClusterMoe> moe_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(MissingExperts, WaitParksWhoNeedsThemAndTheOthersGoOn) {
  const std::vector<std::int32_t> full = reference(request(0, 40)), a = reference(request(1, 40));
  serve(MissingPolicy::kWait);
  Heard before, after, other;
  must(engine_->submit(request(0, 40), before.callbacks()));
  before.wait_tokens(5);
  fleet_.kill(kLost);
  wait_parked(1);
  publish();  // an epoch that does not bring it back changes nothing
  must(engine_->submit(request(0, 40), after.callbacks()));
  wait_parked(2);
  must(engine_->submit(request(1, 40), other.callbacks()));
  EXPECT_EQ(other.wait_end().reason, FinishReason::kLength);
  EXPECT_EQ(other.tokens(), a);
  const Engine::Load load = engine_->load();
  EXPECT_EQ(load.running, 2u) << "parked requests count as running";
  EXPECT_EQ(load.waiting, 0u);
  EXPECT_GE(load.retries, 2u);
  const auto steps = moe_->gained();
  bring_back();
  for (Heard* heard : {&before, &after}) {
    EXPECT_EQ(heard->wait_end().reason, FinishReason::kLength) << heard->wait_end().error.message;
    EXPECT_EQ(heard->tokens(), full);
    EXPECT_EQ(heard->wait_end().masked_experts, 0);
  }
  EXPECT_GT(moe_->gained(), steps);
  EXPECT_EQ(engine_->load().parked, 0u);
}

TEST_F(MissingExperts, AParkedRequestEndsAtItsDeadlineAndCanBeCancelled) {
  serve(MissingPolicy::kWait);
  fleet_.kill(kLost);
  Heard late, cancelled, drained;
  GenerateRequest bounded = request(0, 40);
  bounded.deadline = Clock::now() + 300ms;
  must(engine_->submit(bounded, late.callbacks()));
  const auto id = must(engine_->submit(request(0, 40), cancelled.callbacks()));
  must(engine_->submit(request(0, 40), drained.callbacks()));
  wait_parked(3);
  EXPECT_EQ(late.wait_end().error.code, ErrorCode::kDeadlineExceeded);
  EXPECT_LT(Clock::now(), bounded.deadline + 20s);
  engine_->cancel(id);
  EXPECT_EQ(cancelled.wait_end().reason, FinishReason::kCancelled);
  engine_->drain(Clock::now());
  EXPECT_EQ(drained.wait_end().error.code, ErrorCode::kUnavailable);
  EXPECT_EQ(engine_->load().scheduler.kv_blocks_used, 0);
}

// The coordinator removes a deployment under a router that it has not heard for its lease.
TEST_F(MissingExperts, AnEpochThatPlacesTheirExpertsNowhereEndsThemAtOnce) {
  const std::vector<std::int32_t> a = reference(request(1, 40));
  serve(MissingPolicy::kWait);
  Heard parked, running, other;
  must(engine_->submit(request(0, 200), running.callbacks()));
  running.wait_tokens(1);
  fleet_.kill(kLost);
  must(engine_->submit(request(0, 40), parked.callbacks()));
  wait_parked(2);
  must(engine_->submit(request(1, 40), other.callbacks()));
  view_.deployments = {};  // what "a" needs is still there
  for (auto& layer : view_.placement.owners) {
    for (auto& owners : layer) {
      if (owners == std::vector{kLost}) owners.clear();
    }
  }
  publish();
  for (Heard* heard : {&parked, &running}) {
    const Finish end = heard->wait_end();
    EXPECT_EQ(end.error.code, ErrorCode::kNotFound);
    EXPECT_EQ(end.error.message, "the full model was removed while the request ran (epoch 2)");
  }
  EXPECT_EQ(other.wait_end().reason, FinishReason::kLength) << other.wait_end().error.message;
  EXPECT_EQ(other.tokens(), a);
  EXPECT_EQ(engine_->load().parked, 0u);
}

TEST_F(MissingExperts, FailEndsThemWithATypedError) {
  serve(MissingPolicy::kFail);
  fleet_.kill(kLost);
  Heard full, a;
  must(engine_->submit(request(0, 40), full.callbacks()));
  must(engine_->submit(request(1, 40), a.callbacks()));
  EXPECT_EQ(full.wait_end().error.code, ErrorCode::kWorkerLost);
  EXPECT_NE(full.wait_end().error.message.find("was on worker 1"), std::string::npos)
      << full.wait_end().error.message;
  EXPECT_EQ(a.wait_end().reason, FinishReason::kLength);
}

TEST_F(MissingExperts, MaskGoesOnWithoutThemSaysSoAndKeepsItsBlocksApart) {
  GenerateRequest long_prompt = request(0, 30);
  long_prompt.prompt.resize(60, 9);
  const std::vector<std::int32_t> full = reference(long_prompt);
  GenerateRequest as_a = long_prompt;
  as_a.deployment = "a";
  const std::vector<std::int32_t> a = reference(as_a);
  serve(MissingPolicy::kMask);
  // It begins whole, and goes on with what is left.
  Heard begun;
  must(engine_->submit(request(0, 200), begun.callbacks()));
  begun.wait_tokens(5);
  fleet_.kill(kLost);
  const Finish finish = begun.wait_end();
  EXPECT_EQ(finish.reason, FinishReason::kLength) << finish.error.message;
  const auto layers = embedded_.arch().num_layers();
  const std::int32_t lost = layers * (embedded_.arch().max_routed() - 6);
  EXPECT_EQ(finish.masked_experts, lost);
  EXPECT_EQ(engine_->load().masked, 1u);
  // One that begins now computes under the mask from its first token. What is left are the
  // experts of "a", so it gives that deployment's answer, and even shares its blocks.
  for (const GenerateRequest& each : {long_prompt, as_a}) {
    Heard heard;
    must(engine_->submit(each, heard.callbacks()));
    const Finish end = heard.wait_end();
    EXPECT_EQ(heard.tokens(), a);
    EXPECT_EQ(end.masked_experts, each.deployment.empty() ? lost : 0);
    EXPECT_EQ(end.cached_tokens, each.deployment.empty() ? 0 : 48);
  }
  // With the worker back, nothing of it is found by the full model.
  bring_back();
  Heard whole;
  must(engine_->submit(long_prompt, whole.callbacks()));
  EXPECT_EQ(whole.wait_end().cached_tokens, 0);
  EXPECT_EQ(whole.wait_end().masked_experts, 0);
  EXPECT_EQ(whole.tokens(), full);
}

TEST_F(MissingExperts, AMaskedRequestTakesUpItsExpertsWhenTheyAreBack) {
  serve(MissingPolicy::kMask);
  fleet_.kill(kLost);
  Heard heard;
  must(engine_->submit(request(0, 220), heard.callbacks()));
  heard.wait_tokens(3);
  bring_back();
  const Finish finish = heard.wait_end();
  EXPECT_EQ(finish.reason, FinishReason::kLength);
  EXPECT_GT(finish.masked_experts, 0);
}

TEST_F(MissingExperts, MaskWaitsWhereALayerWouldKeepTooFew) {
  // Of layer 1 one expert less is left than a token selects.
  const auto left = static_cast<std::size_t>(embedded_.arch().layers[1].moe.top_k) - 1;
  auto& layer = view_.placement.owners[1];
  for (std::size_t expert = 0; expert < layer.size(); ++expert)
    layer[expert] = {expert < left ? kKept : kLost};
  for (const WorkerId id : {kKept, kLost}) fleet_.load(id, view_.placement.experts_of(id));
  serve(MissingPolicy::kMask);
  fleet_.kill(kLost);
  Heard heard;
  must(engine_->submit(request(0, 20), heard.callbacks()));
  wait_parked(1);
  bring_back();
  EXPECT_EQ(heard.wait_end().reason, FinishReason::kLength);
  EXPECT_EQ(heard.wait_end().masked_experts, 0);
}

TEST_F(MissingExperts, ParkedRequestsGiveTheirBlocksToOthersAndAreComputedAgain) {
  GenerateRequest long_one = request(0, 30);
  long_one.prompt.resize(40, 9);
  GenerateRequest other = request(1, 60);
  other.prompt.resize(40, 11);
  const std::vector<std::int32_t> full = reference(long_one), a = reference(other);
  serve(MissingPolicy::kWait, {.kv_cache_bytes = 8 * block_bytes()});
  Heard parked, going;
  must(engine_->submit(long_one, parked.callbacks()));
  parked.wait_tokens(2);
  fleet_.kill(kLost);
  wait_parked(1);
  must(engine_->submit(other, going.callbacks()));
  EXPECT_EQ(going.wait_end().reason, FinishReason::kLength);
  EXPECT_EQ(going.tokens(), a);
  EXPECT_GT(engine_->load().scheduler.preemptions, 0u);
  bring_back();
  EXPECT_EQ(parked.wait_end().reason, FinishReason::kLength);
  EXPECT_EQ(parked.tokens(), full);
}

TEST_F(MissingExperts, ParkedRequestsCountForTheQueuesLimit) {
  std::vector<Heard> heard(4);
  serve(MissingPolicy::kWait, {.max_queue = 3});
  fleet_.kill(kLost);
  for (std::size_t i = 0; i < 3; ++i) {
    must(engine_->submit(request(0, 10), heard[i].callbacks()));
    wait_parked(i + 1);
  }
  EXPECT_EQ(engine_->submit(request(0, 10), heard[3].callbacks()).error().code,
            ErrorCode::kResourceExhausted);
  bring_back();
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(heard[i].wait_end().reason, FinishReason::kLength);
}

TEST_F(MissingExperts, ParkedRequestsFillTheirOwnDeploymentsQueueOnly) {
  std::vector<Heard> parked(2), others(6);
  Heard refused, after;
  serve(MissingPolicy::kWait, {.max_queue = 2});
  fleet_.kill(kLost);
  const auto cancelled = must(engine_->submit(request(0, 10), parked[0].callbacks()));
  must(engine_->submit(request(0, 10), parked[1].callbacks()));
  wait_parked(2);
  EXPECT_EQ(engine_->submit(request(0, 10), refused.callbacks()).error().code,
            ErrorCode::kResourceExhausted);
  for (Heard& heard : others) must(engine_->submit(request(1, 10), heard.callbacks()));
  for (Heard& heard : others) EXPECT_EQ(heard.wait_end().reason, FinishReason::kLength);
  EXPECT_EQ(engine_->load().parked, 2u);
  // Who leaves makes room in the deployment's queue.
  engine_->cancel(cancelled);
  EXPECT_EQ(parked[0].wait_end().reason, FinishReason::kCancelled);
  EXPECT_EQ(engine_->load().parked, 1u);
  must(engine_->submit(request(0, 10), after.callbacks()));
  wait_parked(2);
  bring_back();
  for (Heard* heard : {&parked[1], &after})
    EXPECT_EQ(heard->wait_end().reason, FinishReason::kLength);
  EXPECT_EQ(engine_->load().parked, 0u);
}

TEST_F(MissingExperts, MetricsTellOfThem) {
  RouterMetrics metrics(embedded_.arch(), "m", false);
  serve(MissingPolicy::kWait);
  Heard heard;
  must(engine_->submit(request(0, 40), heard.callbacks()));
  heard.wait_tokens(3);
  fleet_.kill(kLost);
  wait_parked(1);
  const BackendStats stats = moe_->stats();
  metrics.on_backend(stats);
  std::string page = metrics.scrape(engine_->load(), engine_->epoch());
  EXPECT_NE(page.find("\nmoiety_requests_parked 1\n"), std::string::npos);
  EXPECT_NE(page.find("\nmoiety_step_retries_total 1\n"), std::string::npos);
  EXPECT_NE(page.find("\nmoiety_workers_lost_total{by=\"connection\"} 1\n"), std::string::npos);
  EXPECT_NE(page.find("\nmoiety_layer_slowest_total{worker=\"0\"}"), std::string::npos);
  // The parts of the wait are its parts.
  EXPECT_GT(stats.compute.count(), 0);
  EXPECT_LE((stats.network + stats.queue + stats.compute).count(), stats.wait.count());
  EXPECT_GE((stats.network + stats.queue + stats.compute).count(), stats.wait.count() / 2);
  bring_back();
  heard.wait_end();
}

}  // namespace
}  // namespace moiety::testing
