#pragma once

#include <memory>
#include <string>
#include <vector>

#include "checkpoint/architecture.h"
#include "common/deployment_name.h"
#include "router/engine.h"

namespace moiety {

/// The router's Prometheus metrics. Thread-safe.
class RouterMetrics final : public EngineObserver {
 public:
  /// Label `model` is what the API calls it: `served_name` for the full model, served_name:NAME for
  /// a deployment; label `deployment` is NAME, and served_name for the full model. With
  /// `per_expert` there is one series per (layer, expert).
  RouterMetrics(const Architecture& architecture, std::string served_name, bool per_expert);
  ~RouterMetrics() override;

  void on_step(double seconds, std::size_t rows) override;
  void on_experts(const std::vector<std::vector<std::int32_t>>& topk_ids) override;
  void on_backend(const BackendStats& stats) override;
  void on_start(double seconds) override;
  void on_first_token(double seconds) override;
  void on_next_token(double seconds) override;
  void on_request_end(const std::string& deployment, const Finish& finish) override;
  /// Counts a request that was refused before it reached the step loop, by its error code's name.
  void on_refused(const std::string& model, std::string_view reason);

  /// Text exposition format. Gauges and the scheduler's counters are set from `load` and `epoch`
  /// first.
  std::string scrape(const Engine::Load& load, Epoch epoch);

  /// [layer][expert]: tokens that selected each expert since the start, also without `per_expert`.
  std::vector<std::vector<std::uint64_t>> expert_tokens() const;

  std::uint64_t requests_total() const;
  std::uint64_t prompt_tokens_total() const;
  std::uint64_t generation_tokens_total() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moiety
