#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bench/machine_limits.h"
#include "bench/step_cost.h"
#include "common/dtype.h"
#include "common/thread_pool.h"
#include "kernels/variant.h"

namespace moiety::bench {

/// The sizes that kernels are measured at.
struct KernelSizes {
  std::int32_t hidden = 1024;
  std::int32_t expert_width = 512;
  std::int32_t num_experts = 64;
  std::int32_t num_heads = 16;
  std::int32_t head_dim = 64;
  std::int32_t context = 1024;  ///< of attention
};

/// One kernel at one size, ready to run.
struct KernelCase {
  std::string name;  ///< "linear", "expert_ffn", "attention decode", "attention prefill"
  DType dtype = DType::kBF16;
  std::int32_t m = 0;  ///< rows (of each expert, for expert_ffn)
  Cost cost;           ///< of one call
  std::function<void(kernels::Variant, ThreadPool&)> run;
  std::optional<kernels::Variant> only = {};  ///< the one variant that it stands beside
};

/// linear and expert_ffn with m = 1, 4, 16, 64 and 512 rows, and attention for decoding and
/// prefill, on weights (or a cache) of one type. Weights take turns over more memory than the
/// caches hold, so that each call reads its own from DRAM. Attention knows no I8: it is left out.
///
///   linear             a matrix [hidden, hidden]
///   linear, two chains the same by a kernel without equal bits (two_chains.h), up to 4 rows, where
///                      the CPU can run it: what equal bits cost
///   expert_ffn         GroupedExperts: m rows for each of num_experts (fewer from 64 rows on)
///   attention decode   m sequences with `context` tokens each, one new token of each
///   attention prefill  m tokens of one sequence
std::vector<KernelCase> kernel_cases(DType dtype, const KernelSizes& sizes);

}  // namespace moiety::bench
