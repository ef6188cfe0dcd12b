#include "kernels/fixed_point.h"

#include <bit>
#include <cstring>
#include <limits>
#include <numeric>

#include "kernels/implementations.h"
#include "tests/kernels/tolerance.h"

namespace moiety::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Row {
  std::vector<std::int16_t> q;
  FixedPointRow made;
};

Row row_of(std::span<const float> x) {
  Row row{std::vector<std::int16_t>(x.size(), -1), {}};
  row.made = to_fixed_point(x, row.q.data());
  return row;
}

/// Of values as large as `largest` in magnitude: whether these could be held.
bool fits(std::span<const float> x, double scale) {
  std::int64_t sum = 0;
  for (const float value : x) {
    if (std::abs(value) / scale > kMostFixedPoint) return false;
    sum += static_cast<std::int64_t>(std::nearbyint(std::abs(value) / scale));
  }
  return 127 * sum <= std::numeric_limits<std::int32_t>::max();
}

std::vector<std::vector<float>> rows() {
  std::vector<std::vector<float>> all = {{1},
                                         {-1, 0.5f},
                                         {0x1.fdfcp0f, 1},   // 32639 / 2^14
                                         {0x1.fdfe8p0f, 1},  // a little more
                                         {0x1.ffffp0f},
                                         {1e38f, -3e38f},
                                         {1e-30f, 2e-31f},
                                         {1000, 0.25f, 0, -0.0f}};
  for (const std::size_t size : {7, 64, 333, 2048, 5001}) {
    all.push_back(random_floats(size, static_cast<unsigned>(size), 3));
  }
  all.emplace_back(4000, 0.7f);  // 127 times their sum would not fit into 32 bits
  all.emplace_back(200000, -1.0f);
  return all;
}

TEST(FixedPoint, IsTheNearestMultipleOfTheSmallestScaleThatFits) {
  for (const std::vector<float>& x : rows()) {
    const Row row = row_of(x);
    const double scale = row.made.scale;
    int exponent = 0;
    EXPECT_EQ(std::frexp(scale, &exponent), 0.5) << "a power of two";
    std::uint32_t sum = 0;
    const double error = fixed_point_error(x);
    for (std::size_t i = 0; i < x.size(); ++i) {
      ASSERT_EQ(row.q[i], std::nearbyint(x[i] / scale)) << x[i];
      ASSERT_LE(std::abs(row.q[i] * scale - x[i]), error);
      sum += static_cast<std::uint32_t>(row.q[i]);
    }
    EXPECT_EQ(row.made.offset, 128 * sum);
    EXPECT_TRUE(fits(x, scale)) << x.size() << " values, first " << x[0];
    EXPECT_FALSE(fits(x, scale / 2)) << x.size() << " values, first " << x[0];
  }
}

TEST(FixedPoint, TheLargestValueIsHeld) {
  EXPECT_EQ(row_of(std::vector<float>{32639, -1}).q, (std::vector<std::int16_t>{32639, -1}));
  EXPECT_EQ(row_of(std::vector<float>{-32639.25f}).q, (std::vector<std::int16_t>{-16320}));
}

TEST(FixedPoint, ZerosAndTinyValuesHaveAScale) {
  for (const std::vector<float>& x :
       {std::vector<float>(), std::vector<float>(9), {0x1p-149f, -0x1p-140f}, {0x1p-126f}}) {
    const Row row = row_of(x);
    EXPECT_TRUE(std::isnormal(row.made.scale)) << row.made.scale;
    for (std::size_t i = 0; i < x.size(); ++i) {
      EXPECT_LE(std::abs(row.q[i] * double{row.made.scale} - x[i]), 0x1p-127);
    }
  }
}

TEST(FixedPoint, ARowWithNanOrInfinityIsZeroTimesNan) {
  for (const float bad : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
    for (const std::size_t at : {0, 20, 36}) {
      std::vector<float> x = random_floats(37, 1);
      x[at] = bad;
      const Row row = row_of(x);
      EXPECT_TRUE(std::isnan(row.made.scale));
      EXPECT_EQ(row.made.offset, 0u);
      EXPECT_EQ(row.q, std::vector<std::int16_t>(x.size()));
    }
  }
}

struct Implementation {
  Variant variant;
  MagnitudeFn* magnitude;
  FixedPointFn* fixed_point;
  DigitsFn* digits;
};
constexpr Implementation kImplementations[] = {
    {Variant::kPlain, plain::magnitude, plain::fixed_point, plain::digits},
    {Variant::kAvx2, avx2::magnitude, avx2::fixed_point, avx2::digits},
    {Variant::kAvx512, avx512::magnitude, avx512::fixed_point, avx512::digits}};

TEST(FixedPoint, EveryVariantHasTheSameBits) {
  for (const Implementation& of : kImplementations) {
    if (!variant_supported(of.variant)) continue;
    for (const std::vector<float>& x : rows()) {
      const float factor = 1 / row_of(x).made.scale;
      std::vector<std::int16_t> expected(x.size()), q(x.size());
      const FixedPointSums sums = plain::fixed_point(x.data(), x.size(), factor, expected.data());
      const FixedPointSums actual = of.fixed_point(x.data(), x.size(), factor, q.data());
      EXPECT_EQ(q, expected) << variant_name(of.variant);
      EXPECT_EQ(actual.sum, sums.sum);
      EXPECT_EQ(actual.magnitude, sums.magnitude);
      EXPECT_EQ(sums.sum, std::accumulate(q.begin(), q.end(), std::int64_t{0}));
      EXPECT_EQ(of.magnitude(x.data(), x.size()), plain::magnitude(x.data(), x.size()));
    }
    std::vector<float> x = random_floats(50, 3);
    x[41] = -kInfinity;
    EXPECT_EQ(std::bit_cast<float>(of.magnitude(x.data(), x.size())), kInfinity);
    x[7] = -std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(std::isnan(std::bit_cast<float>(of.magnitude(x.data(), x.size()))));
  }
}

TEST(FixedPoint, DigitsGiveTheValuesBack) {
  for (const Implementation& of : kImplementations) {
    if (!variant_supported(of.variant)) continue;
    std::vector<std::int16_t> q;  // every value, 64 to a block
    for (int value = -kMostFixedPoint; value <= kMostFixedPoint; ++value)
      q.push_back(static_cast<std::int16_t>(value));
    q.resize((q.size() + 63) / 64 * 64);
    std::vector<std::int16_t> digits = q;
    of.digits(digits.data(), static_cast<std::int32_t>(q.size() / 64));
    const auto* bytes = reinterpret_cast<const std::int8_t*>(digits.data());
    for (std::size_t i = 0; i < q.size(); ++i) {
      const std::int8_t* block = bytes + i / 64 * 128;
      ASSERT_EQ(256 * block[i % 64] + block[64 + i % 64], q[i]) << variant_name(of.variant);
    }
  }
}

}  // namespace
}  // namespace moiety::kernels
