#include <algorithm>
#include <cstdio>

#include "bench/engine_bench.h"
#include "cli/bench.h"
#include "cli/bench_model.h"
#include "cli/named_files.h"
#include "common/ids.h"

namespace moiety::cli {
namespace json = boost::json;
namespace {

struct EngineFlags {
  BenchModel model;
  std::string batch = "1,4,16,32";
  std::int32_t load_rounds = 3;
  bench::EngineBenchOptions options;
};

json::object spread_json(const std::vector<double>& values) {
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  return {{"median", bench::median(values)}, {"lowest", *low}, {"highest", *high}};
}

json::object cost_json(const bench::Cost& cost, const bench::MachineRates& rates, double steps) {
  return {{"bytes_per_step", cost.bytes / steps},
          {"operations_per_step", cost.operations / steps},
          {"limit_ms_per_step", 1e3 * bench::limit_seconds(cost, rates) / steps}};
}

struct Phase {
  const char* name;
  bench::Cost bench::StepCost::*cost;
};
constexpr Phase kPhases[] = {{"dense", &bench::StepCost::dense},
                             {"experts", &bench::StepCost::experts},
                             {"attention", &bench::StepCost::attention},
                             {"head", &bench::StepCost::head}};

std::string name_of(const bench::EngineMeasurement& measured) {
  return measured.prefill ? "prefill " + std::to_string(measured.tokens)
                          : "decode B=" + std::to_string(measured.batch);
}

json::object measurement_json(const bench::EngineMeasurement& measured,
                              const bench::MachineRates& rates) {
  json::object phases;
  for (const Phase& phase : kPhases)
    phases[phase.name] = cost_json(measured.cost.*phase.cost, rates, measured.steps);
  std::vector<double> limits;
  for (const double seconds : measured.limit_seconds) limits.push_back(measured.tokens / seconds);
  return {{"name", name_of(measured)},
          {"batch", measured.batch},
          {"steps_per_run", measured.steps},
          {"tokens_per_run", measured.tokens},
          {"tokens_per_second", spread_json(measured.rates())},
          {"limit_tokens_per_second", spread_json(limits)},
          {"fraction_of_limit", spread_json(measured.fractions())},
          {"distinct_experts_per_layer", measured.distinct_experts},
          {"phases", phases}};
}

void print_table(const bench::EngineReport& report, const bench::MachineRates& rates) {
  std::printf("\n%-13s %9s %19s %10s %9s %16s %9s\n", "", "tokens/s", "lowest to highest", "limit",
              "fraction", "lowest, highest", "experts");
  for (const bench::EngineMeasurement& measured : report.cases) {
    const std::vector<double> speeds = measured.rates(), fractions = measured.fractions();
    const auto [low, high] = std::minmax_element(speeds.begin(), speeds.end());
    const auto [least, most] = std::minmax_element(fractions.begin(), fractions.end());
    std::printf("%-13s %9.1f %8.1f to %7.1f %10.1f %8.1f%% %6.1f%% %7.1f%% %9.1f\n",
                name_of(measured).c_str(), bench::median(speeds), *low, *high,
                measured.tokens / bench::median(measured.limit_seconds),
                100 * bench::median(fractions), 100 * *least, 100 * *most,
                measured.distinct_experts);
  }
  std::printf("\none step:     %10s", "took ms");
  for (const Phase& phase : kPhases) std::printf("%27s", phase.name);
  std::printf("\n%24s", "");
  for (std::size_t i = 0; i < std::size(kPhases); ++i)
    std::printf("%10s%9s%8s", "MB", "GFLOP", "ms");
  std::printf("\n");
  for (const bench::EngineMeasurement& measured : report.cases) {
    std::printf("%-13s %10.2f", name_of(measured).c_str(),
                1e3 * bench::median(measured.seconds) / measured.steps);
    for (const Phase& phase : kPhases) {
      const bench::Cost& cost = measured.cost.*phase.cost;
      std::printf("%10.2f%9.2f%8.2f", cost.bytes / 1e6 / measured.steps,
                  cost.operations / 1e9 / measured.steps,
                  1e3 * bench::limit_seconds(cost, rates) / measured.steps);
    }
    std::printf("\n");
  }
}

Result<void> run_bench_engine(EngineFlags flags) {
  flags.options.batches.clear();
  for (const std::string& text : split_commas(flags.batch)) {
    char* end = nullptr;
    const long batch = std::strtol(text.c_str(), &end, 10);
    if (*end != '\0' || batch < 1 || batch > 1024) {
      return fail(ErrorCode::kInvalidArgument,
                  "--batch " + flags.batch + ": must be numbers from 1 to 1024, with commas");
    }
    flags.options.batches.push_back(static_cast<std::int32_t>(batch));
  }
  if (flags.options.batches.empty() && flags.options.prompt_tokens == 0) {
    return fail(ErrorCode::kInvalidArgument,
                "--batch is empty and --prompt is 0: nothing to measure");
  }
  flags.options.seed = flags.model.seed;
  MOIETY_TRY(flags.model.prepare());
  const ModelFlags& model_flags = flags.model.model;

  // In turns, because what a machine takes to hand out memory changes from minute to minute.
  std::uint64_t file_bytes = 0;
  std::vector<double> reading_seconds, loading_seconds;
  std::optional<OfflineModel> loaded;
  for (std::int32_t round = 0; round < flags.load_rounds; ++round) {
    loaded.reset();
    {
      ThreadPool pool(model_flags.threads);
      MOIETY_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(model_flags.model));
      MOIETY_ASSIGN(reading_seconds.emplace_back(), read_seconds(checkpoint, pool, file_bytes));
    }
    const Clock::time_point began = Clock::now();
    MOIETY_ASSIGN(loaded, OfflineModel::load(model_flags, false));
    loading_seconds.push_back(std::chrono::duration<double>(Clock::now() - began).count());
  }
  const double reading = bench::median(reading_seconds);
  const double loading = bench::median(loading_seconds);
  OfflineModel& offline = *loaded;

  const DType dtype = offline.model->dtype();
  const DType expert_dtype = offline.store->dtype();
  bench::MachineLimits limits(offline.pool->num_threads(), dtype != DType::kF32);
  limits.read_weights();
  std::optional<bench::EngineBench> engine;
  {
    Progress progress(!model_flags.json);
    MOIETY_ASSIGN(engine,
                  bench::EngineBench::make(*offline.model, *offline.experts, expert_dtype,
                                           flags.options, limits, [&](const std::string& what) {
                                             progress.update(what);
                                             return !interrupted();
                                           }));
    for (std::int32_t run = 0; run < flags.options.runs; ++run) MOIETY_TRY(engine->run());
  }
  const bench::EngineReport& report = engine->report();
  const bench::MachineRates rates = report.median_rates();
  const std::string variant(kernels::variant_name(offline.model->variant()));
  std::vector<std::pair<std::string, double>> loops;
  for (const bench::MatrixLoop& loop : bench::matrix_loops())
    loops.emplace_back(loop.name, limits.measure_loop(loop, 0.1));

  if (model_flags.json) {
    json::object other;
    for (const auto& [name, rate] : loops) other[name] = rate;
    json::array cases;
    for (const bench::EngineMeasurement& measured : report.cases)
      cases.push_back(measurement_json(measured, rates));
    print_json(json::object{{"command", "moiety bench engine"},
                            {"version", MOIETY_VERSION},
                            {"cpu", bench::cpu_name()},
                            {"threads", offline.pool->num_threads()},
                            {"kernels", variant},
                            {"model", flags.model.name()},
                            {"dtype", dtype_name(dtype)},
                            {"expert_dtype", dtype_name(expert_dtype)},
                            {"runs", flags.options.runs},
                            {"seed", flags.options.seed},
                            {"load",
                             {{"seconds", loading},
                              {"file_bytes", file_bytes},
                              {"read_once_seconds", reading},
                              {"fraction_of_reading", reading / loading}}},
                            {"dram_bytes_per_second", rates.dram_bytes_per_second},
                            {"matrix_loop", limits.matrix_loop().name},
                            {"matrix_operations_per_second", rates.matrix_operations_per_second},
                            {"core_share", rates.core_share},
                            {"loops_operations_per_second", other},
                            {"cases", cases}});
    return {};
  }
  std::printf("%s, %s with experts as %s, %s kernels, %zu threads, %s\n",
              flags.model.name().c_str(), std::string(dtype_name(dtype)).c_str(),
              std::string(dtype_name(expert_dtype)).c_str(), variant.c_str(),
              offline.pool->num_threads(), bench::cpu_name().c_str());
  std::printf("loaded in %.2f s; reading its %.2f GB once into memory takes %.2f s (%.0f%%)\n",
              loading, static_cast<double>(file_bytes) / 1e9, reading, 100 * reading / loading);
  std::printf("limits: DRAM %.1f GB/s, %s %.1f GFLOP/s; medians of %zu, in turns with %d runs\n",
              rates.dram_bytes_per_second / 1e9, limits.matrix_loop().name,
              rates.matrix_operations_per_second / 1e9, report.rates.size(), flags.options.runs);
  if (rates.core_share < 0.95) {
    std::printf(
        "THE MACHINE IS BUSY: other processes had %.0f%% of the cores' time; figures mean little\n",
        100 * (1 - rates.core_share));
  }
  std::printf("loops from registers:");
  for (const auto& [name, rate] : loops) std::printf(" %s %.0f GFLOP/s", name.c_str(), rate / 1e9);
  std::printf("\n");
  print_table(report, rates);
  return {};
}

}  // namespace

void add_bench_engine(CLI::App& bench, Chosen& chosen) {
  CLI::App* command = bench.add_subcommand(
      "engine",
      "Prefill and decode rates in this process, as fractions of what the machine's memory and "
      "arithmetic allow, measured in turns with them");
  auto flags = std::make_shared<EngineFlags>();
  flags->model.add_to(*command);
  command->add_option("--batch", flags->batch, "Sequences that decode at once")
      ->capture_default_str();
  command->add_option("--prompt", flags->options.prompt_tokens, "Tokens of the prefill; 0 = none")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  command
      ->add_option("--context", flags->options.context,
                   "Tokens before those that are decoded; 64 to 128 unless given")
      ->check(CLI::Range(1, 1 << 20));
  command
      ->add_option("--load-rounds", flags->load_rounds,
                   "How often the files are read and the model is loaded, in turns")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  command->add_option("--runs", flags->options.runs, "Runs of each case; medians are printed")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command
      ->add_option("--run-seconds", flags->options.run_seconds,
                   "How long a decode run takes, about")
      ->check(CLI::Range(0.0, 60.0))
      ->capture_default_str();
  command->callback(
      [flags, &chosen] { chosen.run = [flags] { return run_bench_engine(*flags); }; });
}

}  // namespace moiety::cli
