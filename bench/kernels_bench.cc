// Kernels against the limits of this machine, measured in the same run: BM_FmaPeak (one core, from
// registers) and BM_ReadDram (one core, a set larger than the caches). bytes_per_second counts
// weights, FLOP/s two per product. The thread count of `linear` is the number of available cores;
// experts run on one.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "common/thread_pool.h"
#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/expert_ffn.h"
#include "kernels/linear.h"
#include "kernels/variant.h"

namespace moiety::kernels {
namespace {

std::vector<float> random_floats(std::size_t size) {
  std::mt19937 engine(1);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> values(size);
  for (float& value : values) value = uniform(engine);
  return values;
}

PackedMatrix random_matrix(DType dtype, std::int32_t n, std::int32_t k) {
  return {dtype, n, k, random_floats(static_cast<std::size_t>(n) * static_cast<std::size_t>(k))};
}

void report(benchmark::State& state, double bytes, double flops) {
  const auto runs = static_cast<double>(state.iterations());
  state.counters["B/s"] = benchmark::Counter(bytes * runs, benchmark::Counter::kIsRate);
  state.counters["FLOP/s"] = benchmark::Counter(flops * runs, benchmark::Counter::kIsRate);
}

/// linear of [n, k] over m rows. `set_bytes` of matrices take turns, so that weights come from DRAM
/// when it is larger than the caches.
void linear_bench(
    benchmark::State& state, Variant variant, DType dtype, std::int32_t m, std::size_t set_bytes) {
  constexpr std::int32_t kN = 1024;
  constexpr std::int32_t kK = 2048;
  std::vector<PackedMatrix> matrices;
  matrices.push_back(random_matrix(dtype, kN, kK));
  while (matrices.size() * matrices[0].num_bytes() < set_bytes) {
    matrices.push_back(random_matrix(dtype, kN, kK));
  }
  std::vector<float> x = random_floats(static_cast<std::size_t>(m) * kK);
  round_inputs(dtype, x);
  std::vector<float> y(static_cast<std::size_t>(m) * kN);
  ThreadPool pool(0);
  std::size_t next = 0;
  for (auto _ : state) {
    linear(variant, matrices[next++ % matrices.size()], x.data(), m, y.data(), pool);
    benchmark::DoNotOptimize(y.data());
  }
  report(state, static_cast<double>(matrices[0].num_bytes()), 2.0 * m * kN * kK);
}

void expert_bench(benchmark::State& state, Variant variant, DType dtype, std::int32_t m) {
  constexpr std::int32_t kHidden = 2048;
  constexpr std::int32_t kIntermediate = 1024;
  const ExpertWeights weights{random_matrix(dtype, kIntermediate, kHidden),
                              random_matrix(dtype, kIntermediate, kHidden),
                              random_matrix(dtype, kHidden, kIntermediate)};
  const std::vector<float> x = random_floats(static_cast<std::size_t>(m) * kHidden);
  InputRows rows;
  rows.reset(variant, dtype, m, kHidden);
  for (std::int32_t row = 0; row < m; ++row) {
    rows.set_row(row, &x[static_cast<std::size_t>(row) * kHidden]);
  }
  const ExpertRows all{&weights, 0, m};
  std::vector<float> y(x.size());
  ThreadPool pool(1);
  GroupedExperts experts;
  for (auto _ : state) {
    experts.run(rows, {&all, 1}, y.data(), kHidden, pool);
    benchmark::DoNotOptimize(y.data());
  }
  report(state, static_cast<double>(weights.num_bytes()), 6.0 * m * kHidden * kIntermediate);
}

/// `rows` rows at the end of a sequence of `tokens`.
void attention_bench(
    benchmark::State& state, Variant variant, DType dtype, std::int32_t rows, std::int32_t tokens) {
  constexpr std::int32_t kHeads = 16;
  constexpr std::int32_t kHeadDim = 128;
  constexpr std::size_t kSize = kHeads * kHeadDim;
  const std::int32_t num_blocks = (tokens + kKvBlockSize - 1) / kKvBlockSize;
  const std::size_t pool_bytes =
      static_cast<std::size_t>(num_blocks) * kKvBlockSize * kSize * dtype_bytes(dtype);
  std::vector<std::byte> k(pool_bytes);
  std::vector<std::byte> v(pool_bytes);
  const KvLayer layer{dtype, k.data(), v.data(), kHeads, kHeadDim};
  std::vector<std::int32_t> table(static_cast<std::size_t>(num_blocks));
  for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<std::int32_t>(i);
  const std::vector<float> values =
      random_floats(kSize * static_cast<std::size_t>(std::max(tokens, rows)));
  for (std::int32_t t = 0; t < tokens; ++t) {
    store_kv(layer, table, t, values.data() + t * kSize, values.data() + t * kSize);
  }
  std::vector<AttentionRow> queries;
  for (std::int32_t row = 0; row < rows; ++row) queries.push_back({table, tokens - rows + row});
  std::vector<float> out(kSize * static_cast<std::size_t>(rows));
  ThreadPool pool(0);
  for (auto _ : state) {
    attention(variant, layer, queries, kHeads, 0.09f, 0, values.data(), out.data(), pool);
    benchmark::DoNotOptimize(out.data());
  }
  double pairs = 0;
  for (const AttentionRow& row : queries) pairs += row.position + 1;
  report(state, 2.0 * pairs * kSize * static_cast<double>(dtype_bytes(dtype)), 4.0 * pairs * kSize);
}

[[gnu::target("avx2,fma")]] void fma_peak_avx2(benchmark::State& state) {
  using Vector [[gnu::vector_size(32)]] = float;
  constexpr int kChains = 12;
  constexpr int kSteps = 1000;
  Vector sums[kChains] = {};
  Vector factor = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
  asm volatile("" : "+x"(factor));
  for (auto _ : state) {
    for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
      for (int c = 0; c < kChains; ++c) {
        asm volatile("vfmadd231ps %1, %1, %0" : "+x"(sums[c]) : "x"(factor));
      }
    }
  }
  report(state, 0, 2.0 * 8 * kChains * kSteps);
}

void read_dram(benchmark::State& state) {
  const std::vector<std::uint64_t> set((std::size_t{512} << 20) / 8, 1);
  for (auto _ : state) {
    std::uint64_t sums[8] = {};
    for (std::size_t i = 0; i < set.size(); i += 8) {
      for (std::size_t l = 0; l < 8; ++l) sums[l] += set[i + l];
    }
    benchmark::DoNotOptimize(sums);
  }
  report(state, static_cast<double>(set.size()) * 8, 0);
}

std::string name_of(const char* operation, Variant variant, DType dtype, std::int32_t m) {
  return std::string(operation) + "/" + std::string(variant_name(variant)) + "/" +
         std::string(dtype_name(dtype)) + "/m:" + std::to_string(m);
}

void register_all() {
  if (variant_supported(Variant::kAvx2))
    benchmark::RegisterBenchmark("fma_peak/avx2", fma_peak_avx2);
  benchmark::RegisterBenchmark("read_dram", read_dram);
  for (Variant variant : supported_variants()) {
    if (variant == Variant::kReference) continue;
    for (DType dtype : {DType::kBF16, DType::kF32}) {
      for (std::int32_t m : {1, 16, 64}) {
        benchmark::RegisterBenchmark(name_of("linear", variant, dtype, m).c_str(), linear_bench,
                                     variant, dtype, m, 0)
            ->UseRealTime();
        benchmark::RegisterBenchmark(name_of("expert_ffn", variant, dtype, m).c_str(), expert_bench,
                                     variant, dtype, m);
      }
      benchmark::RegisterBenchmark(name_of("linear_cold", variant, dtype, 1).c_str(), linear_bench,
                                   variant, dtype, 1, std::size_t{256} << 20)
          ->UseRealTime();
      for (std::int32_t rows : {1, 256}) {
        benchmark::RegisterBenchmark(name_of("attention_1024", variant, dtype, rows).c_str(),
                                     attention_bench, variant, dtype, rows, 1024)
            ->UseRealTime();
      }
    }
  }
}

}  // namespace
}  // namespace moiety::kernels

int main(int argc, char** argv) {
  moiety::kernels::register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
