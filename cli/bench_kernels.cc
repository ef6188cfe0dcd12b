#include <algorithm>
#include <cstdio>

#include "bench/kernel_cases.h"
#include "cli/bench.h"
#include "cli/named_files.h"
#include "common/ids.h"

namespace moiety::cli {
namespace json = boost::json;
namespace {

constexpr double kRunSeconds = 0.02;

struct KernelFlags {
  std::string kernels = "all";
  std::string dtypes = "bf16,int8,f32";
  std::int32_t runs = 5;
  std::size_t threads = 0;
  bool json = false;
};

struct Measured {
  const bench::KernelCase* kernel = nullptr;
  kernels::Variant variant{};
  std::vector<double> seconds, fractions;  // of each run
};

Result<DType> dtype_of(const std::string& name) {
  if (name == "bf16") return DType::kBF16;
  if (name == "int8") return DType::kI8;
  if (name == "f32") return DType::kF32;
  return fail(ErrorCode::kInvalidArgument, "--dtype: '" + name + "' is none of bf16, int8 and f32");
}

/// Seconds of one call, over about kRunSeconds.
double time_calls(const Measured& measured, ThreadPool& pool) {
  measured.kernel->run(measured.variant, pool);  // warm-up
  const Clock::time_point began = Clock::now();
  double seconds = 0;
  std::int32_t calls = 0;
  do {
    measured.kernel->run(measured.variant, pool);
    ++calls;
    seconds = std::chrono::duration<double>(Clock::now() - began).count();
  } while (seconds < kRunSeconds);
  return seconds / calls;
}

Result<std::vector<kernels::Variant>> variants_of(const std::string& name) {
  if (name != "all") {
    MOIETY_ASSIGN(const kernels::Variant variant, kernels::choose_variant(name));
    return std::vector<kernels::Variant>{variant};
  }
  std::vector<kernels::Variant> variants = kernels::supported_variants();
  std::erase(variants, kernels::Variant::kReference);  // an oracle: nobody waits for it
  return variants;
}

/// Every case of one type with each variant, in turns with the machine's limits.
Result<std::vector<Measured>> measure(const KernelFlags& flags,
                                      const std::vector<bench::KernelCase>& cases,
                                      const std::vector<kernels::Variant>& variants,
                                      bench::MachineLimits& limits,
                                      ThreadPool& pool,
                                      Progress& progress) {
  std::vector<Measured> all;
  for (const bench::KernelCase& kernel : cases) {
    for (const kernels::Variant variant : variants) {
      if (!kernel.only || *kernel.only == variant) all.push_back({&kernel, variant, {}, {}});
    }
  }
  for (std::int32_t run = 1; run <= flags.runs; ++run) {
    for (Measured& measured : all) {
      if (interrupted()) return interrupted_error();
      progress.update("run " + std::to_string(run) + " of " + std::to_string(flags.runs) + ": " +
                      measured.kernel->name + " m=" + std::to_string(measured.kernel->m) + " " +
                      std::string(kernels::variant_name(measured.variant)));
      const bench::MachineRates rates = limits.measure(2 * kRunSeconds);
      measured.seconds.push_back(time_calls(measured, pool));
      measured.fractions.push_back(bench::limit_seconds(measured.kernel->cost, rates) /
                                   measured.seconds.back());
    }
  }
  return all;
}

json::object measured_json(const Measured& measured) {
  const bench::KernelCase& kernel = *measured.kernel;
  const double seconds = bench::median(measured.seconds);
  const auto [low, high] =
      std::minmax_element(measured.fractions.begin(), measured.fractions.end());
  return {{"kernel", kernel.name},
          {"dtype", dtype_name(kernel.dtype)},
          {"m", kernel.m},
          {"variant", kernels::variant_name(measured.variant)},
          {"seconds", seconds},
          {"bytes", kernel.cost.bytes},
          {"operations", kernel.cost.operations},
          {"bytes_per_second", kernel.cost.bytes / seconds},
          {"operations_per_second", kernel.cost.operations / seconds},
          {"fraction_of_limit", bench::median(measured.fractions)},
          {"lowest_fraction", *low},
          {"highest_fraction", *high}};
}

void print_row(const Measured& measured) {
  const bench::KernelCase& kernel = *measured.kernel;
  const double seconds = bench::median(measured.seconds);
  const auto [low, high] =
      std::minmax_element(measured.fractions.begin(), measured.fractions.end());
  std::printf("%-18s %-5s %4d  %-12s %10.1f %8.2f %10.1f %9.1f%% %7.1f%% %7.1f%%\n",
              kernel.name.c_str(), std::string(dtype_name(kernel.dtype)).c_str(), kernel.m,
              std::string(kernels::variant_name(measured.variant)).c_str(), 1e6 * seconds,
              kernel.cost.bytes / seconds / 1e9, kernel.cost.operations / seconds / 1e9,
              100 * bench::median(measured.fractions), 100 * *low, 100 * *high);
}

Result<void> run_bench_kernels(const KernelFlags& flags) {
  MOIETY_ASSIGN(const std::vector<kernels::Variant> variants, variants_of(flags.kernels));
  ThreadPool pool(flags.threads);
  const bench::KernelSizes sizes;
  if (!flags.json) {
    std::printf(
        "%s, %zu threads; hidden %d, expert width %d, %d heads of %d; median of %d runs\n\n",
        bench::cpu_name().c_str(), pool.num_threads(), sizes.hidden, sizes.expert_width,
        sizes.num_heads, sizes.head_dim, flags.runs);
    std::printf("%-18s %-5s %4s  %-12s %10s %8s %10s %10s %8s %8s\n", "", "type", "m", "kernels",
                "us", "GB/s", "GFLOP/s", "of limit", "lowest", "highest");
  }
  json::array results;
  for (const std::string& name : split_commas(flags.dtypes)) {
    MOIETY_ASSIGN(const DType dtype, dtype_of(name));
    bench::MachineLimits limits(pool.num_threads(), dtype != DType::kF32);
    const std::vector<bench::KernelCase> cases = bench::kernel_cases(dtype, sizes);
    std::vector<Measured> all;
    {
      Progress progress(!flags.json);
      MOIETY_ASSIGN(all, measure(flags, cases, variants, limits, pool, progress));
    }
    for (const Measured& measured : all) {
      if (flags.json) {
        results.push_back(measured_json(measured));
      } else {
        print_row(measured);
      }
    }
  }
  if (flags.json) {
    print_json(json::object{{"command", "moiety bench kernels"},
                            {"version", MOIETY_VERSION},
                            {"cpu", bench::cpu_name()},
                            {"threads", pool.num_threads()},
                            {"runs", flags.runs},
                            {"results", results}});
  }
  return {};
}

}  // namespace

void add_bench_kernels(CLI::App& bench, Chosen& chosen) {
  CLI::App* command = bench.add_subcommand(
      "kernels",
      "linear, expert_ffn and attention of every variant that this CPU can run, as fractions of "
      "what its memory and arithmetic allow, measured in turns");
  auto flags = std::make_shared<KernelFlags>();
  command->add_option("--kernels", flags->kernels, "One variant, auto, or all")
      ->capture_default_str();
  command->add_option("--dtype", flags->dtypes, "Types of weights, with commas: bf16, int8, f32")
      ->capture_default_str();
  command->add_option("--runs", flags->runs, "Runs of each case; medians are printed")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--threads", flags->threads, "Compute threads; 0 = one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->add_flag("--json", flags->json, "Print JSON");
  command->callback(
      [flags, &chosen] { chosen.run = [flags] { return run_bench_kernels(*flags); }; });
}

}  // namespace moiety::cli
