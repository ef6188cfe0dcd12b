#include "bench/machine_limits.h"

#include <gtest/gtest.h>

#include "kernels/variant.h"

namespace moiety::bench {
namespace {

constexpr std::size_t kBuffer = std::size_t{8} << 20;  // the rates mean nothing then

TEST(MachineLimits, MeasuresEveryLoopThatTheCpuHas) {
  MachineLimits limits(2, true, kBuffer);
  EXPECT_GT(limits.measure_dram(0.01), 1e8);
  for (const MatrixLoop& loop : matrix_loops())
    EXPECT_GT(limits.measure_loop(loop, 0.01), 1e8) << loop.name;
}

TEST(MachineLimits, TakesTilesForBf16AndTheWidestFmaElsewhere) {
  using kernels::Variant;
  const std::string fma = kernels::variant_supported(Variant::kAvx512) ? "avx512_fma"
                          : kernels::variant_supported(Variant::kAvx2) ? "avx2_fma"
                                                                       : "sse2";
  EXPECT_EQ(MachineLimits(1, false, kBuffer).matrix_loop().name, fma);
  EXPECT_EQ(MachineLimits(1, true, kBuffer).matrix_loop().name,
            kernels::variant_supported(Variant::kAmx) ? "amx_bf16" : fma);
}

TEST(MachineLimits, Median) {
  EXPECT_EQ(median({3, 1, 2}), 2);
  EXPECT_EQ(median({4, 1, 3, 2}), 2.5);
}

}  // namespace
}  // namespace moiety::bench
