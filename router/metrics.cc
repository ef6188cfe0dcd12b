#include "router/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <atomic>
#include <mutex>

namespace moiety {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using Buckets = prometheus::Histogram::BucketBoundaries;

namespace {

/// Sets a counter to a sum that somebody else keeps.
template <class Value>
void advance(prometheus::Counter& counter, Value sum) {
  counter.Increment(static_cast<double>(sum) - counter.Value());
}

}  // namespace

struct RouterMetrics::State {
  State(const Architecture& architecture, std::string name, bool per_expert)
      : served_name(std::move(name)),
        requests(
            BuildCounter()
                .Name("moiety_requests_total")
                .Help("Requests that ended, by reason: stop, length, cancelled, or an error code")
                .Register(registry)),
        prompt_tokens(BuildCounter()
                          .Name("moiety_prompt_tokens_total")
                          .Help("Prompt tokens of requests that ended")
                          .Register(registry)
                          .Add({})),
        generation_tokens(BuildCounter()
                              .Name("moiety_generation_tokens_total")
                              .Help("Generated tokens of requests that ended")
                              .Register(registry)
                              .Add({})),
        step_seconds(BuildHistogram()
                         .Name("moiety_step_seconds")
                         .Help("Time of one forward pass of the batch")
                         .Register(registry)
                         .Add({},
                              Buckets{0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5,
                                      1, 2, 5})),
        step_rows(BuildHistogram()
                      .Name("moiety_step_tokens")
                      .Help("Tokens of one forward pass")
                      .Register(registry)
                      .Add({}, Buckets{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024})),
        masked_mass(BuildHistogram()
                        .Name("moiety_masked_mass")
                        .Help("Per request: gate probability that wanted experts which the "
                              "deployment leaves out, "
                              "mean over MoE layers and tokens")
                        .Register(registry)),
        queue_seconds(seconds("moiety_request_queue_seconds",
                              "Per request: from its arrival to its first step")),
        first_token_seconds(seconds("moiety_time_to_first_token_seconds",
                                    "Per request: from its arrival to its first token")),
        inter_token_seconds(seconds("moiety_inter_token_latency_seconds",
                                    "Per token but the first: time since the one before")),
        preemptions(counter("moiety_preemptions_total",
                            "Requests pushed out because KV blocks ran out; their tokens are "
                            "computed again later")),
        prefix_queries(counter("moiety_prefix_cache_query_tokens_total",
                               "Prompt tokens of requests that started")),
        prefix_hits(counter("moiety_prefix_cache_hit_tokens_total",
                            "Prompt tokens that were taken from the prefix cache")),
        prefix_evictions(counter("moiety_prefix_cache_evicted_blocks_total",
                                 "Cached KV blocks whose place was needed")),
        kv_blocks(gauge("moiety_kv_blocks", "KV blocks that there are, of 16 tokens each")),
        kv_blocks_used(gauge("moiety_kv_blocks_used", "KV blocks held by requests that run")),
        kv_blocks_cached(
            gauge("moiety_kv_blocks_cached",
                  "KV blocks that no request holds, kept for requests that begin alike")),
        running(gauge("moiety_requests_running", "Requests in the batch, parked ones included")),
        waiting(gauge("moiety_requests_waiting", "Requests in the queue, preempted ones included")),
        epoch(gauge("moiety_epoch", "Placement that steps use now; 0 before the first")),
        expert_tokens(
            BuildCounter()
                .Name("moiety_expert_tokens_total")
                .Help("Tokens that selected a routed expert, by layer and original expert id")
                .Register(registry)),
        parked(gauge("moiety_requests_parked",
                     "Requests that wait for experts which no worker in reach holds")),
        retries(counter("moiety_step_retries_total",
                        "Parts of steps computed again because experts were out of reach")),
        masked(counter("moiety_masked_requests_total",
                       "Requests that went on without experts out of reach")),
        redispatches(counter("moiety_redispatches_total",
                             "Messages sent again to another owner within a layer, because a "
                             "worker was lost")),
        hedges(
            counter("moiety_hedges_total", "Late messages for which other owners were asked too")),
        hedges_won(counter("moiety_hedges_won_total",
                           "Of moiety_hedges_total, those where the others answered first")),
        lost_workers(BuildCounter()
                         .Name("moiety_workers_lost_total")
                         .Help("Workers that this router gave up, by what told it: connection, "
                               "silent, epoch, refused")
                         .Register(registry)),
        detection_seconds(counter(
            "moiety_worker_loss_detection_seconds_total",
            "From a dispatch to the moment its worker was known to be lost, summed over losses")),
        layers(counter("moiety_moe_layers_total", "MoE layers run with workers")),
        dispatches(counter("moiety_dispatches_total", "Dispatch messages sent to workers")),
        rows(counter("moiety_dispatch_rows_total", "Tokens times MoE layers run with workers")),
        row_copies(counter(
            "moiety_dispatch_row_copies_total",
            "Rows sent to workers; divided by moiety_dispatch_rows_total: the mean fan-out")),
        local_pairs(counter("moiety_local_expert_pairs_total",
                            "Pairs of a token and an expert that this router computed itself")),
        held_experts(gauge("moiety_router_experts_resident",
                           "Routed experts that this process holds itself")),
        held_bytes(gauge("moiety_router_expert_bytes_resident", "Bytes of their packed weights")),
        stale(counter("moiety_stale_replies_total",
                      "Replies dropped because they matched no dispatch under way")),
        wait_seconds(
            counter("moiety_layer_wait_seconds_total",
                    "From a layer's first dispatch to its last reply, summed over layers")),
        blocked_seconds(counter("moiety_layer_blocked_seconds_total",
                                "Of that, what the router had nothing else to do")),
        network_seconds(counter("moiety_layer_network_seconds_total",
                                "Of a layer's wait, what its last reply spent outside of the "
                                "worker, summed over layers")),
        queue_seconds_total(counter("moiety_layer_queue_seconds_total",
                                    "Of a layer's wait, what its last reply's dispatch lay in "
                                    "the worker's queue, by the worker's clock")),
        compute_seconds(counter(
            "moiety_layer_compute_seconds_total",
            "Compute time of each layer's slowest worker, by its own clock, summed over layers")),
        slowest(BuildCounter()
                    .Name("moiety_layer_slowest_total")
                    .Help("Layers whose last reply came from this worker")
                    .Register(registry)),
        lane_bytes(BuildCounter()
                       .Name("moiety_lane_bytes_total")
                       .Help("Payload bytes on the lane, by direction")
                       .Register(registry)),
        lane_sent(lane_bytes.Add({{"direction", "sent"}})),
        lane_received(lane_bytes.Add({{"direction", "received"}})) {
    for (std::size_t layer = 0; layer < architecture.layers.size(); ++layer) {
      const std::int32_t count = architecture.layers[layer].moe.num_routed;
      experts.emplace_back(static_cast<std::size_t>(count));
      if (!per_expert) continue;
      for (std::int32_t expert = 0; expert < count; ++expert) {
        experts.back()[static_cast<std::size_t>(expert)].counter = &expert_tokens.Add(
            {{"layer", std::to_string(layer)}, {"expert", std::to_string(expert)}});
      }
    }
  }

  /// Tokens of one expert, counted on the step loop's thread without the cost of a counter that
  /// many threads may advance; scrape() moves the sum there.
  struct ExpertTokens {
    std::atomic<std::uint64_t> tokens{0};
    prometheus::Counter* counter = nullptr;  // null: no series
  };

  prometheus::Counter& counter(const char* name, const char* help) {
    return BuildCounter().Name(name).Help(help).Register(registry).Add({});
  }
  prometheus::Gauge& gauge(const char* name, const char* help) {
    return BuildGauge().Name(name).Help(help).Register(registry).Add({});
  }
  prometheus::Histogram& seconds(const char* name, const char* help) {
    return BuildHistogram().Name(name).Help(help).Register(registry).Add(
        {}, Buckets{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60,
                    120, 300});
  }

  std::string served_name;
  prometheus::Registry registry;
  prometheus::Family<prometheus::Counter>& requests;
  prometheus::Counter& prompt_tokens;
  prometheus::Counter& generation_tokens;
  prometheus::Histogram& step_seconds;
  prometheus::Histogram& step_rows;
  prometheus::Family<prometheus::Histogram>& masked_mass;
  prometheus::Histogram& queue_seconds;
  prometheus::Histogram& first_token_seconds;
  prometheus::Histogram& inter_token_seconds;
  prometheus::Counter& preemptions;
  prometheus::Counter& prefix_queries;
  prometheus::Counter& prefix_hits;
  prometheus::Counter& prefix_evictions;
  prometheus::Gauge& kv_blocks;
  prometheus::Gauge& kv_blocks_used;
  prometheus::Gauge& kv_blocks_cached;
  prometheus::Gauge& running;
  prometheus::Gauge& waiting;
  prometheus::Gauge& epoch;
  prometheus::Family<prometheus::Counter>& expert_tokens;
  prometheus::Gauge& parked;
  prometheus::Counter& retries;
  prometheus::Counter& masked;
  prometheus::Counter& redispatches;
  prometheus::Counter& hedges;
  prometheus::Counter& hedges_won;
  prometheus::Family<prometheus::Counter>& lost_workers;
  prometheus::Counter& detection_seconds;
  prometheus::Counter& layers;
  prometheus::Counter& dispatches;
  prometheus::Counter& rows;
  prometheus::Counter& row_copies;
  prometheus::Counter& local_pairs;
  prometheus::Gauge& held_experts;
  prometheus::Gauge& held_bytes;
  prometheus::Counter& stale;
  prometheus::Counter& wait_seconds;
  prometheus::Counter& blocked_seconds;
  prometheus::Counter& network_seconds;
  prometheus::Counter& queue_seconds_total;
  prometheus::Counter& compute_seconds;
  prometheus::Family<prometheus::Counter>& slowest;
  prometheus::Family<prometheus::Counter>& lane_bytes;
  prometheus::Counter& lane_sent;
  prometheus::Counter& lane_received;
  std::vector<std::vector<ExpertTokens>> experts;  // [layer][expert]
  std::mutex scrape_mutex;                         // counters are advanced to sums by one thread
  std::atomic<std::uint64_t> requests_total{0};
};

RouterMetrics::RouterMetrics(const Architecture& architecture,
                             std::string served_name,
                             bool per_expert)
    : state_(std::make_unique<State>(architecture, std::move(served_name), per_expert)) {}
RouterMetrics::~RouterMetrics() = default;

void RouterMetrics::on_step(double seconds, std::size_t rows) {
  state_->step_seconds.Observe(seconds);
  state_->step_rows.Observe(static_cast<double>(rows));
}

void RouterMetrics::on_experts(const std::vector<std::vector<std::int32_t>>& topk_ids) {
  for (std::size_t layer = 0; layer < state_->experts.size(); ++layer) {
    for (std::int32_t expert : topk_ids[layer]) {
      if (expert < 0) continue;
      std::atomic<std::uint64_t>& tokens =
          state_->experts[layer][static_cast<std::size_t>(expert)].tokens;
      tokens.store(tokens.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    }
  }
}

void RouterMetrics::on_backend(const BackendStats& stats) {
  advance(state_->layers, stats.layers);
  advance(state_->dispatches, stats.dispatches);
  advance(state_->rows, stats.rows);
  advance(state_->row_copies, stats.row_copies);
  advance(state_->local_pairs, stats.local_pairs);
  advance(state_->stale, stats.stale_dropped);
  advance(state_->wait_seconds, std::chrono::duration<double>(stats.wait).count());
  const auto seconds = [](std::chrono::nanoseconds time) {
    return std::chrono::duration<double>(time).count();
  };
  advance(state_->blocked_seconds, seconds(stats.blocked));
  advance(state_->network_seconds, seconds(stats.network));
  advance(state_->queue_seconds_total, seconds(stats.queue));
  advance(state_->compute_seconds, seconds(stats.compute));
  for (const auto& [worker, layers] : stats.slowest)
    advance(state_->slowest.Add({{"worker", std::to_string(worker.value)}}), layers);
  advance(state_->redispatches, stats.redispatches);
  advance(state_->hedges, stats.hedges);
  advance(state_->hedges_won, stats.hedges_won);
  for (const auto& [how, count] : stats.lost)
    advance(state_->lost_workers.Add({{"by", how}}), count);
  advance(state_->detection_seconds, seconds(stats.detection));
  advance(state_->lane_sent, stats.bytes_sent);
  advance(state_->lane_received, stats.bytes_received);
}

void RouterMetrics::on_start(double seconds) { state_->queue_seconds.Observe(seconds); }
void RouterMetrics::on_first_token(double seconds) { state_->first_token_seconds.Observe(seconds); }
void RouterMetrics::on_next_token(double seconds) { state_->inter_token_seconds.Observe(seconds); }

void RouterMetrics::on_request_end(const std::string& deployment, const Finish& finish) {
  const std::string model = served_as(state_->served_name, deployment);
  const std::string_view reason = finish.reason == FinishReason::kError
                                      ? error_info(finish.error.code).name
                                      : finish_reason_name(finish.reason);
  on_refused(model, reason);
  state_->prompt_tokens.Increment(finish.prompt_tokens);
  state_->generation_tokens.Increment(finish.completion_tokens);
  if (finish.masked_mass) {
    state_->masked_mass
        .Add({{"deployment", deployment.empty() ? model : deployment}},
             Buckets{0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9})
        .Observe(*finish.masked_mass);
  }
}

void RouterMetrics::on_refused(const std::string& model, std::string_view reason) {
  state_->requests.Add({{"model", model}, {"reason", std::string(reason)}}).Increment();
  ++state_->requests_total;
}

std::string RouterMetrics::scrape(const Engine::Load& load, Epoch epoch) {
  state_->running.Set(static_cast<double>(load.running));
  state_->waiting.Set(static_cast<double>(load.waiting));
  state_->parked.Set(static_cast<double>(load.parked));
  state_->epoch.Set(static_cast<double>(epoch.value));
  state_->held_experts.Set(static_cast<double>(load.held.experts));
  state_->held_bytes.Set(static_cast<double>(load.held.bytes));
  const SchedulerStats& scheduler = load.scheduler;
  state_->kv_blocks.Set(scheduler.kv_blocks);
  state_->kv_blocks_used.Set(scheduler.kv_blocks_used);
  state_->kv_blocks_cached.Set(scheduler.kv_blocks_cached);
  const std::lock_guard lock(state_->scrape_mutex);
  advance(state_->retries, load.retries);
  advance(state_->masked, load.masked);
  advance(state_->preemptions, scheduler.preemptions);
  advance(state_->prefix_queries, scheduler.prefix_query_tokens);
  advance(state_->prefix_hits, scheduler.prefix_hit_tokens);
  advance(state_->prefix_evictions, scheduler.prefix_evictions);
  for (auto& layer : state_->experts) {
    for (State::ExpertTokens& expert : layer) {
      if (expert.counter == nullptr) continue;
      advance(*expert.counter, expert.tokens.load(std::memory_order_relaxed));
    }
  }
  return prometheus::TextSerializer().Serialize(state_->registry.Collect());
}

std::vector<std::vector<std::uint64_t>> RouterMetrics::expert_tokens() const {
  std::vector<std::vector<std::uint64_t>> totals;
  for (const auto& layer : state_->experts) {
    auto& tokens = totals.emplace_back();
    for (const State::ExpertTokens& expert : layer)
      tokens.push_back(expert.tokens.load(std::memory_order_relaxed));
  }
  return totals;
}

std::uint64_t RouterMetrics::requests_total() const { return state_->requests_total; }
std::uint64_t RouterMetrics::prompt_tokens_total() const {
  return static_cast<std::uint64_t>(state_->prompt_tokens.Value());
}
std::uint64_t RouterMetrics::generation_tokens_total() const {
  return static_cast<std::uint64_t>(state_->generation_tokens.Value());
}

}  // namespace moiety
