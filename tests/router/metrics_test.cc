#include "router/metrics.h"

#include "tests/router/engine_support.h"

namespace moiety {
namespace {

using testing::EngineTest;
using testing::Heard;
using testing::must;

/// The value of a series, or -1.
double value_of(const std::string& page, const std::string& series) {
  const std::string line = "\n" + series + " ";
  const std::size_t at = page.find(line);
  return at == std::string::npos ? -1 : std::stod(page.substr(at + line.size()));
}

TEST_F(EngineTest, MetricsTellOfQueueCacheAndLatency) {
  RouterMetrics metrics(embedded_.arch(), "m", true);
  const auto engine = make_engine({.kv_cache_bytes = 20 * block_bytes()}, &metrics);
  GenerateRequest request = EngineTest::request(0);
  request.prompt.resize(50, 9);
  for (int round = 0; round < 2; ++round) {
    Heard heard;
    must(engine->submit(request, heard.callbacks()));
    heard.wait_end();
  }
  const std::string page = metrics.scrape(engine->load(), engine->epoch());
  EXPECT_EQ(value_of(page, "moiety_prefix_cache_query_tokens_total"), 100);
  EXPECT_EQ(value_of(page, "moiety_prefix_cache_hit_tokens_total"), 48);
  EXPECT_EQ(value_of(page, "moiety_prefix_cache_evicted_blocks_total"), 0);
  EXPECT_EQ(value_of(page, "moiety_preemptions_total"), 0);
  EXPECT_EQ(value_of(page, "moiety_kv_blocks"), 20);
  EXPECT_EQ(value_of(page, "moiety_kv_blocks_used"), 0);
  EXPECT_EQ(value_of(page, "moiety_kv_blocks_cached"), 4) << "69 of 70 tokens were computed";
  EXPECT_EQ(value_of(page, "moiety_request_queue_seconds_count"), 2);
  EXPECT_EQ(value_of(page, "moiety_time_to_first_token_seconds_count"), 2);
  EXPECT_EQ(value_of(page, "moiety_inter_token_latency_seconds_count"), 2 * 19);
  // Every computed token selects top_k experts in a layer: 50 + 19, then 2 + 19.
  double tokens = 0;
  for (std::int32_t expert = 0; expert < embedded_.arch().layers[0].moe.num_routed; ++expert) {
    tokens += value_of(
        page, "moiety_expert_tokens_total{expert=\"" + std::to_string(expert) + "\",layer=\"0\"}");
  }
  EXPECT_EQ(tokens, (69 + 21) * embedded_.arch().layers[0].moe.top_k);
  std::uint64_t counted = 0;
  const auto expert_tokens = metrics.expert_tokens();
  for (const std::uint64_t tokens_of : expert_tokens[0]) counted += tokens_of;
  EXPECT_EQ(counted, tokens);
  // Nothing is counted twice.
  EXPECT_EQ(value_of(metrics.scrape(engine->load(), engine->epoch()),
                     "moiety_prefix_cache_hit_tokens_total"),
            48);
}

TEST_F(EngineTest, MetricsCountPreemptions) {
  RouterMetrics metrics(embedded_.arch(), "m", false);
  const auto engine = make_engine({.kv_cache_bytes = 4 * block_bytes()}, &metrics);
  std::vector<Heard> heard(3);
  for (Heard& one : heard) {
    GenerateRequest request = EngineTest::request(0, 40);
    request.prompt.resize(12, 1);
    request.sampling = {1.0f, 1.0f, static_cast<std::uint64_t>(&one - heard.data())};
    must(engine->submit(request, one.callbacks()));
  }
  for (Heard& one : heard) EXPECT_EQ(one.wait_end().reason, FinishReason::kLength);
  const std::string page = metrics.scrape(engine->load(), engine->epoch());
  EXPECT_GT(value_of(page, "moiety_preemptions_total"), 0);
  EXPECT_EQ(value_of(page, "moiety_request_queue_seconds_count"), 3) << "not again for a restart";
  // Without a series for each expert they are counted all the same.
  EXPECT_EQ(page.find("moiety_expert_tokens_total{"), std::string::npos);
  std::uint64_t counted = 0;
  const auto expert_tokens = metrics.expert_tokens();
  for (const std::uint64_t tokens_of : expert_tokens[0]) counted += tokens_of;
  EXPECT_GE(counted, 3u * (12 + 39) * embedded_.arch().layers[0].moe.top_k);
}

}  // namespace
}  // namespace moiety
