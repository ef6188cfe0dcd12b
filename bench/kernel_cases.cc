#include "bench/kernel_cases.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "bench/two_chains.h"
#include "common/aligned.h"
#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/expert_ffn.h"
#include "kernels/linear.h"

namespace moiety::bench {
namespace {

using kernels::ExpertWeights;
using kernels::PackedMatrix;

constexpr std::size_t kBeyondCaches = std::size_t{192} << 20;
constexpr std::int32_t kRows[] = {1, 4, 16, 64, 512};
constexpr std::int32_t kMostRows = 512;

std::vector<float> random_floats(std::size_t size) {
  std::minstd_rand engine(1);
  std::vector<float> values(size);
  for (float& value : values)
    value = static_cast<float>(engine()) / static_cast<float>(engine.max()) - 0.5f;
  return values;
}

std::size_t area(std::int32_t rows, std::int32_t columns) {
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns);
}

/// Matrices [hidden, hidden] that take turns.
struct LinearSet {
  std::vector<PackedMatrix> matrices;
  std::vector<float> x;
  AlignedFloats y;
  std::size_t next = 0;
};

void add_linear(DType dtype, const KernelSizes& sizes, std::vector<KernelCase>& cases) {
  auto set = std::make_shared<LinearSet>();
  const std::vector<float> weights = random_floats(area(sizes.hidden, sizes.hidden));
  std::size_t bytes = 0;
  do {
    set->matrices.emplace_back(dtype, sizes.hidden, sizes.hidden, weights);
    bytes += set->matrices.back().num_bytes();
  } while (bytes < kBeyondCaches);
  set->x = random_floats(area(kMostRows, sizes.hidden));
  if (dtype == DType::kBF16) kernels::round_inputs(dtype, set->x);
  set->y.resize(set->x.size());
  for (const std::int32_t m : kRows) {
    const Cost cost{static_cast<double>(set->matrices[0].num_bytes()),
                    2.0 * m * sizes.hidden * sizes.hidden};
    cases.push_back(
        {"linear", dtype, m, cost, [set, m](kernels::Variant variant, ThreadPool& pool) {
           const PackedMatrix& w = set->matrices[set->next++ % set->matrices.size()];
           kernels::linear(variant, w, set->x.data(), m, set->y.data(), pool);
         }});
    if (dtype != DType::kBF16 || m > 4 || !can_run_two_chains()) continue;
    cases.push_back({"linear, two chains", dtype, m, cost,
                     [set, m, hidden = sizes.hidden](kernels::Variant variant, ThreadPool& pool) {
                       kernels::InputRows inputs;  // made anew, as linear() does
                       inputs.reset(variant, DType::kBF16, m, hidden);
                       for (std::int32_t row = 0; row < m; ++row)
                         inputs.set_row(row, set->x.data() + area(row, hidden));
                       const PackedMatrix& w = set->matrices[set->next++ % set->matrices.size()];
                       linear_two_chains(w, inputs, set->y.data(), pool);
                     },
                     kernels::Variant::kAvx512Bf16});
  }
}

struct ExpertSet {
  std::vector<ExpertWeights> experts;
  std::vector<float> row;
  kernels::InputRows inputs;
  AlignedFloats y;
  kernels::GroupedExperts grouped;
  // What `inputs` are made for.
  kernels::Variant variant = kernels::Variant::kReference;
  std::int32_t num_rows = 0;
};

void add_expert_ffn(DType dtype, const KernelSizes& sizes, std::vector<KernelCase>& cases) {
  auto set = std::make_shared<ExpertSet>();
  const std::int32_t hidden = sizes.hidden, width = sizes.expert_width;
  const std::vector<float> weights = random_floats(area(hidden, width));
  for (std::int32_t e = 0; e < sizes.num_experts; ++e) {
    set->experts.push_back({PackedMatrix(dtype, width, hidden, weights),
                            PackedMatrix(dtype, width, hidden, weights),
                            PackedMatrix(dtype, hidden, width, weights)});
  }
  set->row = random_floats(static_cast<std::size_t>(sizes.hidden));
  for (const std::int32_t m : kRows) {
    // From 64 rows on arithmetic is what limits, and fewer experts show it.
    const std::int32_t count =
        std::min(sizes.num_experts, m <= 16 ? sizes.num_experts : std::max(2, 1024 / m));
    const std::int32_t num_rows = m * count;
    const Cost cost{static_cast<double>(set->experts[0].num_bytes()) * count,
                    6.0 * num_rows * hidden * width};
    std::vector<kernels::ExpertRows> rows;
    for (std::int32_t e = 0; e < count; ++e)
      rows.push_back({&set->experts[static_cast<std::size_t>(e)], e * m, m});
    const std::size_t stride = row_stride(static_cast<std::size_t>(hidden));
    cases.push_back(
        {"expert_ffn", dtype, m, cost,
         [set, rows, num_rows, dtype, hidden, stride](kernels::Variant variant, ThreadPool& pool) {
           if (set->variant != variant || set->num_rows != num_rows) {
             set->inputs.reset(variant, dtype, num_rows, hidden);
             for (std::int32_t r = 0; r < num_rows; ++r) set->inputs.set_row(r, set->row.data());
             set->variant = variant;
             set->num_rows = num_rows;
             set->y.resize(static_cast<std::size_t>(num_rows) * stride);
           }
           set->grouped.run(set->inputs, rows, set->y.data(), static_cast<std::ptrdiff_t>(stride),
                            pool);
         }});
  }
}

struct AttentionSet {
  std::vector<std::byte> k, v;
  kernels::KvLayer layer;
  std::vector<std::vector<std::int32_t>> tables;
  std::vector<kernels::AttentionRow> rows;
  std::vector<float> q, out;
};

/// `sequences` of `tokens` tokens; `rows_each` query rows at the end of each.
std::shared_ptr<AttentionSet> attention_set(DType dtype,
                                            const KernelSizes& sizes,
                                            std::int32_t sequences,
                                            std::int32_t tokens,
                                            std::int32_t rows_each) {
  auto set = std::make_shared<AttentionSet>();
  const std::size_t width = area(sizes.num_heads, sizes.head_dim);
  const std::int32_t blocks = (tokens + kernels::kKvBlockSize - 1) / kernels::kKvBlockSize;
  const std::size_t bytes = area(sequences, blocks) *
                            static_cast<std::size_t>(kernels::kKvBlockSize) * width *
                            dtype_bytes(dtype);
  constexpr std::size_t kLine = 64;
  const auto aligned = [&](std::vector<std::byte>& memory) {
    memory.resize(bytes + kLine);
    const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
    return memory.data() + (kLine - address % kLine) % kLine;
  };
  set->layer = {dtype, aligned(set->k), aligned(set->v), sizes.num_heads, sizes.head_dim};
  const std::vector<float> values = random_floats(width);
  for (std::int32_t s = 0; s < sequences; ++s) {
    std::vector<std::int32_t>& table = set->tables.emplace_back(static_cast<std::size_t>(blocks));
    std::iota(table.begin(), table.end(), s * blocks);
    for (std::int32_t t = 0; t < tokens; ++t)
      kernels::store_kv(set->layer, table, t, values.data(), values.data());
  }
  for (const std::vector<std::int32_t>& table : set->tables) {
    for (std::int32_t r = tokens - rows_each; r < tokens; ++r) set->rows.push_back({table, r});
  }
  set->q = random_floats(set->rows.size() * width);
  kernels::round_inputs(dtype, set->q);
  set->out.resize(set->q.size());
  return set;
}

void add_attention(DType dtype, const KernelSizes& sizes, std::vector<KernelCase>& cases) {
  const double width = double{1} * sizes.num_heads * sizes.head_dim;
  const auto add = [&](const char* name, std::int32_t sequences, std::int32_t tokens,
                       std::int32_t rows_each) {
    const auto set = attention_set(dtype, sizes, sequences, tokens, rows_each);
    double pairs = 0;
    for (const kernels::AttentionRow& row : set->rows) pairs += row.position + 1;
    const Cost cost{2.0 * sequences * tokens * width * static_cast<double>(dtype_bytes(dtype)),
                    4 * pairs * width};
    cases.push_back(
        {name, dtype, sequences * rows_each, cost,
         [set, num_heads = sizes.num_heads](kernels::Variant variant, ThreadPool& pool) {
           kernels::attention(variant, set->layer, set->rows, num_heads, 0.125f, 0, set->q.data(),
                              set->out.data(), pool);
         }});
  };
  add("attention decode", 32, sizes.context, 1);
  add("attention prefill", 1, kMostRows, kMostRows);
}

}  // namespace

std::vector<KernelCase> kernel_cases(DType dtype, const KernelSizes& sizes) {
  std::vector<KernelCase> cases;
  add_linear(dtype, sizes, cases);
  add_expert_ffn(dtype, sizes, cases);
  if (dtype != DType::kI8) add_attention(dtype, sizes, cases);
  return cases;
}

}  // namespace moiety::bench
