#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bench/machine_limits.h"
#include "bench/step_cost.h"
#include "common/result.h"
#include "model/model.h"
#include "router/step_backend.h"

namespace moiety::bench {

struct EngineBenchOptions {
  std::vector<std::int32_t> batches = {1, 4, 16, 32};  ///< of decode
  std::int32_t prompt_tokens = 512;                    ///< of prefill; 0 = no prefill
  std::int32_t step_tokens = 512;                      ///< a longer prompt takes several steps
  std::int32_t context = 0;  ///< tokens before decoding; 0 = 64 to 128, differing by sequence
  std::int32_t runs = 7;
  double run_seconds = 0.6;  ///< of decode, about; each run has the same number of steps
  std::uint64_t seed = 1;
};

/// One case ("prefill of 512 tokens", "decode at B = 4") over all runs.
struct EngineMeasurement {
  bool prefill = false;
  std::int32_t batch = 1;
  std::int32_t steps = 0;       ///< of one run
  std::int32_t tokens = 0;      ///< of one run
  StepCost cost;                ///< of one run: the same in all, inputs are the same
  double distinct_experts = 0;  ///< mean over MoE layers and steps
  // Of each run: how long it took, and how long it had to take at the rates that the machine gave
  // just before and just after it.
  std::vector<double> seconds;
  std::vector<double> limit_seconds;

  std::vector<double> rates() const;      ///< tokens per second
  std::vector<double> fractions() const;  ///< limit_seconds / seconds
};

struct EngineReport {
  std::vector<EngineMeasurement> cases;
  std::vector<MachineRates> rates;  ///< every measurement of the machine
  MachineRates median_rates() const;
};

/// Runs a model as the step loop does (forward pass, greedy choice, one step after the other) and
/// the machine's limits in turns. Sequences are random tokens; each run repeats the same inputs.
class EngineBench {
 public:
  /// Computes the prompts and runs each case once, to warm up and to count. All but the options
  /// outlive the bench. `progress` is called with what comes next; false ends with kCancelled.
  /// kInvalidArgument: a sequence would exceed the model's context.
  static Result<EngineBench> make(const Model& model,
                                  StepBackend& experts,
                                  DType expert_dtype,
                                  const EngineBenchOptions& options,
                                  MachineLimits& limits,
                                  std::function<bool(const std::string&)> progress);
  EngineBench(EngineBench&&) noexcept;
  EngineBench& operator=(EngineBench&&) noexcept;
  ~EngineBench();

  /// One run of each case; options.runs says how many are usual, and is the caller's to heed.
  Result<void> run();

  const EngineReport& report() const;

 private:
  struct State;
  explicit EngineBench(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace moiety::bench
