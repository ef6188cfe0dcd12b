#include "router/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

namespace moiety {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using Buckets = prometheus::Histogram::BucketBoundaries;

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
        running(BuildGauge()
                    .Name("moiety_requests_running")
                    .Help("Requests in the batch")
                    .Register(registry)
                    .Add({})),
        waiting(BuildGauge()
                    .Name("moiety_requests_waiting")
                    .Help("Requests in the queue")
                    .Register(registry)
                    .Add({})),
        epoch(BuildGauge()
                  .Name("moiety_epoch")
                  .Help("Placement that steps use now; 0 before the first")
                  .Register(registry)
                  .Add({})),
        expert_tokens(
            BuildCounter()
                .Name("moiety_expert_tokens_total")
                .Help("Tokens that selected a routed expert, by layer and original expert id")
                .Register(registry)),
        layers(counter("moiety_moe_layers_total", "MoE layers run with workers")),
        dispatches(counter("moiety_dispatches_total", "Dispatch messages sent to workers")),
        rows(counter("moiety_dispatch_rows_total", "Tokens times MoE layers run with workers")),
        row_copies(counter(
            "moiety_dispatch_row_copies_total",
            "Rows sent to workers; divided by moiety_dispatch_rows_total: the mean fan-out")),
        stale(counter("moiety_stale_replies_total",
                      "Replies dropped because they matched no dispatch under way")),
        wait_seconds(
            counter("moiety_layer_wait_seconds_total",
                    "From a layer's first dispatch to its last reply, summed over layers")),
        compute_seconds(counter(
            "moiety_layer_compute_seconds_total",
            "Compute time of each layer's slowest worker, by its own clock, summed over layers")),
        lane_bytes(BuildCounter()
                       .Name("moiety_lane_bytes_total")
                       .Help("Payload bytes on the lane, by direction")
                       .Register(registry)),
        lane_sent(lane_bytes.Add({{"direction", "sent"}})),
        lane_received(lane_bytes.Add({{"direction", "received"}})) {
    if (!per_expert) return;
    for (std::size_t layer = 0; layer < architecture.layers.size(); ++layer) {
      experts.emplace_back();
      for (std::int32_t expert = 0; expert < architecture.layers[layer].moe.num_routed; ++expert) {
        experts.back().push_back(&expert_tokens.Add(
            {{"layer", std::to_string(layer)}, {"expert", std::to_string(expert)}}));
      }
    }
  }

  prometheus::Counter& counter(const char* name, const char* help) {
    return BuildCounter().Name(name).Help(help).Register(registry).Add({});
  }

  std::string served_name;
  prometheus::Registry registry;
  prometheus::Family<prometheus::Counter>& requests;
  prometheus::Counter& prompt_tokens;
  prometheus::Counter& generation_tokens;
  prometheus::Histogram& step_seconds;
  prometheus::Histogram& step_rows;
  prometheus::Family<prometheus::Histogram>& masked_mass;
  prometheus::Gauge& running;
  prometheus::Gauge& waiting;
  prometheus::Gauge& epoch;
  prometheus::Family<prometheus::Counter>& expert_tokens;
  prometheus::Counter& layers;
  prometheus::Counter& dispatches;
  prometheus::Counter& rows;
  prometheus::Counter& row_copies;
  prometheus::Counter& stale;
  prometheus::Counter& wait_seconds;
  prometheus::Counter& compute_seconds;
  prometheus::Family<prometheus::Counter>& lane_bytes;
  prometheus::Counter& lane_sent;
  prometheus::Counter& lane_received;
  std::vector<std::vector<prometheus::Counter*>> experts;  // [layer][expert]; empty when turned off
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
      if (expert >= 0) state_->experts[layer][static_cast<std::size_t>(expert)]->Increment();
    }
  }
}

void RouterMetrics::on_backend(const BackendStats& stats) {
  const auto advance = [](prometheus::Counter& counter, auto value) {
    counter.Increment(static_cast<double>(value) - counter.Value());
  };
  advance(state_->layers, stats.layers);
  advance(state_->dispatches, stats.dispatches);
  advance(state_->rows, stats.rows);
  advance(state_->row_copies, stats.row_copies);
  advance(state_->stale, stats.stale_dropped);
  advance(state_->wait_seconds, std::chrono::duration<double>(stats.wait).count());
  advance(state_->compute_seconds, std::chrono::duration<double>(stats.compute).count());
  advance(state_->lane_sent, stats.bytes_sent);
  advance(state_->lane_received, stats.bytes_received);
}

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
  state_->epoch.Set(static_cast<double>(epoch.value));
  return prometheus::TextSerializer().Serialize(state_->registry.Collect());
}

std::uint64_t RouterMetrics::requests_total() const { return state_->requests_total; }
std::uint64_t RouterMetrics::prompt_tokens_total() const {
  return static_cast<std::uint64_t>(state_->prompt_tokens.Value());
}
std::uint64_t RouterMetrics::generation_tokens_total() const {
  return static_cast<std::uint64_t>(state_->generation_tokens.Value());
}

}  // namespace moiety
