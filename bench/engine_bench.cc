#include "bench/engine_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <random>

#include "model/kv_cache.h"
#include "model/sampler.h"

namespace moiety::bench {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr std::int32_t kMostSteps = 64;  // of one decode run

struct Sequence {
  std::vector<std::int32_t> prompt;
  std::vector<std::int32_t> generated;  // the first one follows from the prompt
  std::vector<std::int32_t> blocks;
};

/// Steps under way: everything that a run needs and that is not timed.
class Stepper {
 public:
  Stepper(const Model& model, StepBackend& experts, KvCache& kv, const CostModel& costs)
      : model_(model), experts_(experts), kv_(kv), costs_(costs) {}

  /// One step; chooses the next token of each chunk that wants logits.
  Result<std::vector<std::int32_t>> step(std::span<const SequenceChunk> chunks) {
    experts_.begin_step(++steps_);
    StepResult result = model_.forward(chunks, kv_, experts_);
    const auto vocab = static_cast<std::size_t>(model_.architecture().vocab_size);
    std::vector<std::int32_t> chosen;
    for (std::size_t row = 0; (row + 1) * vocab <= result.logits.size(); ++row) {
      chosen.push_back(
          sample(std::span(result.logits).subspan(row * vocab, vocab), greedy_, {}, {}).token);
    }
    if (any_failed(result)) return experts_.failure();
    topk_ids_.push_back(std::move(result.topk_ids));
    sizes_.emplace_back();
    for (const SequenceChunk& chunk : chunks) {
      sizes_.back().push_back({chunk.start, static_cast<std::int32_t>(chunk.tokens.size()),
                               chunk.logits == SequenceChunk::Logits::kLast ? 1 : 0});
    }
    return chosen;
  }

  /// Adds the costs of all steps since the last call, outside of any timed region.
  void count(EngineMeasurement& measured) {
    double distinct = 0, layers = 0;
    for (std::size_t i = 0; i < sizes_.size(); ++i) {
      measured.cost += costs_.step(sizes_[i], topk_ids_[i]);
      for (std::vector<std::int32_t>& ids : topk_ids_[i]) {
        if (ids.empty()) continue;
        std::sort(ids.begin(), ids.end());
        distinct += static_cast<double>(std::unique(ids.begin(), ids.end()) - ids.begin());
        ++layers;
      }
    }
    measured.distinct_experts = layers > 0 ? distinct / layers : 0;
    forget();
  }
  void forget() {
    sizes_.clear();
    topk_ids_.clear();
  }

 private:
  const Model& model_;
  StepBackend& experts_;
  KvCache& kv_;
  const CostModel& costs_;
  const SamplingParams greedy_{.temperature = 0};
  std::uint64_t steps_ = 0;
  std::vector<std::vector<ChunkSize>> sizes_;
  std::vector<std::vector<std::vector<std::int32_t>>> topk_ids_;
};

/// The whole prompt in steps of at most `step_tokens`; leaves the first generated token.
Result<void> prefill(Stepper& stepper, Sequence& sequence, std::int32_t step_tokens) {
  const auto length = static_cast<std::int32_t>(sequence.prompt.size());
  for (std::int32_t first = 0; first < length; first += step_tokens) {
    const std::int32_t count = std::min(step_tokens, length - first);
    const SequenceChunk chunk{
        std::span<const std::int32_t>(sequence.prompt)
            .subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)),
        first, sequence.blocks, nullptr,
        first + count == length ? SequenceChunk::Logits::kLast : SequenceChunk::Logits::kNone};
    MOIETY_ASSIGN(sequence.generated, stepper.step({&chunk, 1}));
  }
  return {};
}

/// `steps` tokens for each sequence, from the first generated one on: repeating it gives the same.
Result<void> decode(Stepper& stepper, std::span<Sequence> sequences, std::int32_t steps) {
  for (Sequence& sequence : sequences) sequence.generated.resize(1);
  std::vector<SequenceChunk> chunks(sequences.size());
  for (std::int32_t step = 0; step < steps; ++step) {
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      const Sequence& sequence = sequences[i];
      chunks[i] = {std::span(&sequence.generated.back(), 1),
                   static_cast<std::int32_t>(sequence.prompt.size()) + step, sequence.blocks,
                   nullptr, SequenceChunk::Logits::kLast};
    }
    MOIETY_ASSIGN(const std::vector<std::int32_t> chosen, stepper.step(chunks));
    for (std::size_t i = 0; i < sequences.size(); ++i) sequences[i].generated.push_back(chosen[i]);
  }
  return {};
}

std::vector<std::int32_t> random_tokens(std::mt19937_64& random, std::int32_t count, int vocab) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
  for (std::int32_t& token : tokens) {
    token = static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(vocab));
  }
  return tokens;
}

/// Sequences that decode runs use, the largest batch first used whole; and the prefill's at the
/// end.
std::vector<Sequence> make_sequences(const EngineBenchOptions& options, std::int32_t vocab) {
  std::mt19937_64 random(options.seed);
  std::vector<Sequence> sequences;
  const std::int32_t most = options.batches.empty()
                                ? 0
                                : *std::max_element(options.batches.begin(), options.batches.end());
  for (std::int32_t i = 0; i < most; ++i) {
    const std::int32_t length =
        options.context > 0 ? options.context : 64 + static_cast<std::int32_t>(random() % 65);
    sequences.push_back({random_tokens(random, length, vocab), {}, {}});
  }
  if (options.prompt_tokens > 0)
    sequences.push_back({random_tokens(random, options.prompt_tokens, vocab), {}, {}});
  return sequences;
}

std::string case_name(const EngineMeasurement& measured) {
  return measured.prefill ? "prefill of " + std::to_string(measured.tokens) + " tokens"
                          : "decode at B = " + std::to_string(measured.batch);
}

}  // namespace

std::vector<double> EngineMeasurement::rates() const {
  std::vector<double> rates;
  for (const double s : seconds) rates.push_back(tokens / s);
  return rates;
}

std::vector<double> EngineMeasurement::fractions() const {
  std::vector<double> fractions;
  for (std::size_t i = 0; i < seconds.size(); ++i)
    fractions.push_back(limit_seconds[i] / seconds[i]);
  return fractions;
}

MachineRates EngineReport::median_rates() const {
  std::vector<double> dram, matrix, share;
  for (const MachineRates& rate : rates) {
    share.push_back(rate.core_share);
    dram.push_back(rate.dram_bytes_per_second);
    matrix.push_back(rate.matrix_operations_per_second);
  }
  return {median(std::move(dram)), median(std::move(matrix)), median(std::move(share))};
}

struct EngineBench::State {
  MachineLimits& limits;
  EngineBenchOptions options;
  std::function<bool(const std::string&)> progress;
  std::vector<Sequence> sequences;
  KvCache kv;
  CostModel costs;
  Stepper stepper;
  EngineReport report;

  State(const Model& model,
        StepBackend& experts,
        DType expert_dtype,
        const EngineBenchOptions& wanted,
        MachineLimits& machine,
        std::function<bool(const std::string&)> tell_progress,
        std::vector<Sequence> all,
        std::int32_t num_blocks)
      : limits(machine),
        options(wanted),
        progress(std::move(tell_progress)),
        sequences(std::move(all)),
        kv(model.architecture(), model.dtype(), std::max(num_blocks, 1)),
        costs(model.architecture(), model.dtype(), expert_dtype),
        stepper(model, experts, kv, costs) {}

  Result<void> tell(const std::string& what) const {
    if (!progress(what)) return fail(ErrorCode::kCancelled, "interrupted");
    return {};
  }

  Result<void> run_case(const EngineMeasurement& measured) {
    if (measured.prefill) return prefill(stepper, sequences.back(), options.step_tokens);
    return decode(stepper, {sequences.data(), static_cast<std::size_t>(measured.batch)},
                  measured.steps);
  }

  Result<void> add_prefill() {
    EngineMeasurement measured;
    measured.prefill = true;
    measured.tokens = options.prompt_tokens;
    measured.steps = (options.prompt_tokens + options.step_tokens - 1) / options.step_tokens;
    return add(std::move(measured));
  }

  Result<void> add_decode(std::int32_t batch) {
    EngineMeasurement measured;
    measured.batch = batch;
    measured.steps = 2;
    MOIETY_TRY(tell(case_name(measured)));
    const SteadyClock::time_point began = SteadyClock::now();
    MOIETY_TRY(run_case(measured));
    const double seconds = std::chrono::duration<double>(SteadyClock::now() - began).count();
    stepper.forget();
    measured.steps = static_cast<std::int32_t>(
        std::clamp(std::ceil(options.run_seconds / (seconds / 2)), 2.0, double{kMostSteps}));
    measured.tokens = measured.steps * batch;
    return add(std::move(measured));
  }

  /// Runs a case once to count it.
  Result<void> add(EngineMeasurement measured) {
    MOIETY_TRY(tell(case_name(measured)));
    MOIETY_TRY(run_case(measured));
    stepper.count(measured);
    report.cases.push_back(std::move(measured));
    return {};
  }
};

EngineBench::EngineBench(std::unique_ptr<State> state) : state_(std::move(state)) {}
EngineBench::EngineBench(EngineBench&&) noexcept = default;
EngineBench& EngineBench::operator=(EngineBench&&) noexcept = default;
EngineBench::~EngineBench() = default;
const EngineReport& EngineBench::report() const { return state_->report; }

Result<EngineBench> EngineBench::make(const Model& model,
                                      StepBackend& experts,
                                      DType expert_dtype,
                                      const EngineBenchOptions& options,
                                      MachineLimits& limits,
                                      std::function<bool(const std::string&)> progress) {
  const Architecture& arch = model.architecture();
  std::vector<Sequence> sequences = make_sequences(options, arch.vocab_size);
  std::int32_t num_blocks = 0;
  for (Sequence& sequence : sequences) {
    const auto longest = static_cast<std::int32_t>(sequence.prompt.size()) + kMostSteps + 1;
    if (longest > arch.max_positions) {
      return fail(ErrorCode::kInvalidArgument,
                  "a sequence of " + std::to_string(longest) + " tokens (" +
                      std::to_string(sequence.prompt.size()) +
                      " and those to decode) exceeds the " + "model's context of " +
                      std::to_string(arch.max_positions));
    }
    sequence.blocks.resize(static_cast<std::size_t>(KvCache::blocks_for(longest)));
    std::iota(sequence.blocks.begin(), sequence.blocks.end(), num_blocks);
    num_blocks += static_cast<std::int32_t>(sequence.blocks.size());
  }
  const std::size_t num_decoding = sequences.size() - (options.prompt_tokens > 0 ? 1 : 0);
  auto state = std::make_unique<State>(model, experts, expert_dtype, options, limits,
                                       std::move(progress), std::move(sequences), num_blocks);
  for (std::size_t i = 0; i < num_decoding; ++i) {
    MOIETY_TRY(
        state->tell("prompt " + std::to_string(i + 1) + " of " + std::to_string(num_decoding)));
    MOIETY_TRY(prefill(state->stepper, state->sequences[i], options.step_tokens));
  }
  state->stepper.forget();
  if (options.prompt_tokens > 0) MOIETY_TRY(state->add_prefill());
  for (const std::int32_t batch : options.batches) MOIETY_TRY(state->add_decode(batch));
  return EngineBench(std::move(state));
}

Result<void> EngineBench::run() {
  std::vector<MachineRates>& rates = state_->report.rates;
  const double measuring = std::min(0.18, state_->options.run_seconds);
  rates.push_back(state_->limits.measure(measuring));
  for (EngineMeasurement& measured : state_->report.cases) {
    MOIETY_TRY(state_->tell("run " + std::to_string(measured.seconds.size() + 1) + ": " +
                            case_name(measured)));
    const SteadyClock::time_point began = SteadyClock::now();
    MOIETY_TRY(state_->run_case(measured));
    measured.seconds.push_back(std::chrono::duration<double>(SteadyClock::now() - began).count());
    state_->stepper.forget();
    const MachineRates before = rates.back();
    const MachineRates after = rates.emplace_back(state_->limits.measure(measuring));
    measured.limit_seconds.push_back(
        (limit_seconds(measured.cost, before) + limit_seconds(measured.cost, after)) / 2);
  }
  return {};
}

}  // namespace moiety::bench
