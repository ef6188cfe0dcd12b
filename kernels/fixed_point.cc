#include "kernels/fixed_point.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/implementations.h"
#include "kernels/variant.h"

namespace moiety::kernels {
namespace {

// 127 times it still is a positive int32.
constexpr std::int64_t kMostMagnitude = std::numeric_limits<std::int32_t>::max() / 127;
// Both 2^e and 2^-e are normal floats.
constexpr int kMostExponent = 126;

struct FixedPointKernels {
  MagnitudeFn* magnitude;
  FixedPointFn* fixed_point;
  DigitsFn* digits;
};

/// The same bits in every variant.
const FixedPointKernels& fixed_point_kernels() {
  static const FixedPointKernels kernels = {
      widest(plain::magnitude, avx2::magnitude, avx512::magnitude),
      widest(plain::fixed_point, avx2::fixed_point, avx512::fixed_point),
      widest(plain::digits, avx2::digits, avx512::digits)};
  return kernels;
}

}  // namespace

FixedPointRow to_fixed_point(std::span<const float> x, std::int16_t* q) {
  const FixedPointKernels& kernels = fixed_point_kernels();
  const auto max = std::bit_cast<float>(kernels.magnitude(x.data(), x.size()));
  if (!std::isfinite(max)) {
    std::fill_n(q, x.size(), std::int16_t{0});
    return {std::numeric_limits<float>::quiet_NaN(), 0};
  }
  int exponent = 0;  // q = x * 2^exponent
  if (max > 0) {
    std::frexp(max, &exponent);
    exponent = std::min(15 - exponent, kMostExponent);
    if (std::ldexp(max, exponent) > kMostFixedPoint) --exponent;
  }
  for (;;) {
    const FixedPointSums sums =
        kernels.fixed_point(x.data(), x.size(), std::ldexp(1.0f, exponent), q);
    if (sums.magnitude <= kMostMagnitude) {
      return {std::ldexp(1.0f, -exponent), static_cast<std::uint32_t>(sums.sum) * 128u};
    }
    // So many times too large: at least this many bits too many.
    const auto times = static_cast<std::uint64_t>(sums.magnitude / kMostMagnitude);
    exponent -= std::max(1, static_cast<int>(std::bit_width(times)) - 1);
  }
}

void split_digits(std::int16_t* q, std::int32_t blocks) { fixed_point_kernels().digits(q, blocks); }

}  // namespace moiety::kernels
