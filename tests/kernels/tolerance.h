#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kernels/variant.h"

/// What kernel tests share: error bounds, guarded outputs, random inputs.
namespace moiety::kernels {

inline constexpr double kUnitF32 = 0x1p-24;  ///< unit roundoff of float
inline constexpr double kUnitBf16 = 0x1p-8;  ///< of bfloat16

/// Fails where |actual - expected| > bound or actual is not a number, and prints the worst element.
inline testing::AssertionResult within(std::span<const double> expected,
                                       std::span<const float> actual,
                                       std::span<const double> bound) {
  if (expected.size() != actual.size() || expected.size() != bound.size()) {
    return testing::AssertionFailure()
           << "sizes differ: " << expected.size() << ", " << actual.size() << ", " << bound.size();
  }
  std::size_t worst = 0;
  double worst_excess = -1;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(actual[i] - expected[i]);
    const double excess =
        std::isnan(error) ? std::numeric_limits<double>::infinity() : error - bound[i];
    if (excess > worst_excess && excess > 0) {
      worst = i;
      worst_excess = excess;
    }
  }
  if (worst_excess < 0) return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << "element " << worst << " of " << expected.size() << ": expected " << expected[worst]
         << ", actual " << actual[worst] << ", bound " << bound[worst];
}

/// The bound of a sum of `terms` products whose magnitudes add up to `magnitude`.
inline double sum_bound(
    double terms, double u_acc, double magnitude, double u_out, double expected) {
  return 4 * std::sqrt(terms) * u_acc * magnitude + u_out * std::abs(expected);
}

/// How far an element of a row may be from its fixed point (kernels/fixed_point.h).
inline double fixed_point_error(std::span<const float> row) {
  double max = 0, sum = 0;
  for (const float value : row) {
    max = std::max(max, std::abs(double{value}));
    sum += std::abs(double{value});
  }
  return std::max(max / 32639, sum / 0x1p24);
}

/// An output that starts as NaN, between canaries.
class Guarded {
 public:
  explicit Guarded(std::size_t size) : all_(size + 2 * kGuard, kCanary), size_(size) {
    for (float& value : span()) value = std::numeric_limits<float>::quiet_NaN();
  }
  float* data() { return all_.data() + kGuard; }
  std::span<float> span() { return {data(), size_}; }
  bool intact() const {
    for (std::size_t i = 0; i < kGuard; ++i) {
      if (all_[i] != kCanary || all_[kGuard + size_ + i] != kCanary) return false;
    }
    return true;
  }

 private:
  static constexpr std::size_t kGuard = 32;
  static constexpr float kCanary = -12345.5f;
  std::vector<float> all_;
  std::size_t size_;
};

/// Values in [-scale, scale), the same on every machine.
inline std::vector<float> random_floats(std::size_t size, unsigned seed, float scale = 1) {
  std::mt19937 engine(seed);
  std::vector<float> values(size);
  for (float& value : values) {
    value = (static_cast<float>(engine() >> 8) * 0x1p-23f - 1.0f) * scale;
  }
  return values;
}

/// Names the instances of tests that run for every variant.
inline std::string variant_test_name(const testing::TestParamInfo<Variant>& info) {
  return std::string(variant_name(info.param));
}

}  // namespace moiety::kernels
