#include "kernels/elementwise.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/implementations.h"
#include "tests/kernels/tolerance.h"

namespace moiety::kernels {
namespace {

class RmsNormOf : public testing::TestWithParam<Variant> {};
INSTANTIATE_TEST_SUITE_P(Kernels,
                         RmsNormOf,
                         testing::ValuesIn(supported_variants()),
                         variant_test_name);

TEST_P(RmsNormOf, MatchesTheDefinition) {
  for (std::int32_t size : {1, 7, 8, 9, 31, 32, 33, 63, 257, 2048}) {
    const auto count = static_cast<std::size_t>(size);
    const std::vector<float> x = random_floats(count, 1, 3);
    const std::vector<float> weight = random_floats(count, 2);
    double sum = 0;
    for (float value : x) sum += static_cast<double>(value) * value;
    const double factor = 1 / std::sqrt(sum / size + 1e-6f);
    std::vector<double> expected(count);
    std::vector<double> bound(count);
    for (std::size_t i = 0; i < count; ++i) {
      expected[i] = x[i] * factor * weight[i];
      // Every term of the sum is positive: its relative error is that of the factor, halved by the
      // root.
      bound[i] = (2 * std::sqrt(size) + 4) * kUnitF32 * std::abs(expected[i]);
    }
    Guarded y(count);
    rms_norm(GetParam(), x.data(), weight.data(), 1e-6f, size, y.data());
    EXPECT_TRUE(within(expected, y.span(), bound)) << "size=" << size;
    EXPECT_TRUE(y.intact());

    std::vector<float> in_place = x;
    rms_norm(GetParam(), in_place.data(), weight.data(), 1e-6f, size, in_place.data());
    EXPECT_EQ(std::memcmp(in_place.data(), y.data(), count * sizeof(float)), 0);
  }
}

TEST_P(RmsNormOf, EpsKeepsARowOfZerosFinite) {
  const std::vector<float> zeros(20);
  const std::vector<float> weight(20, 2.0f);
  Guarded y(20);
  rms_norm(GetParam(), zeros.data(), weight.data(), 1e-6f, 20, y.data());
  for (float value : y.span()) EXPECT_EQ(value, 0);
}

TEST(RoundInputs, RoundsForBf16AndKeepsF32) {
  const std::vector<float> x = random_floats(37, 3);
  std::vector<float> kept = x;
  round_inputs(DType::kF32, kept);
  EXPECT_EQ(kept, x);
  std::vector<float> rounded = x;
  round_inputs(DType::kBF16, rounded);
  for (std::size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(rounded[i], bf16_to_float(float_to_bf16(x[i])));
    EXPECT_LE(std::abs(rounded[i] - x[i]), kUnitBf16 * std::abs(x[i]));
  }
}

TEST(RoundInputs, EveryInstructionSetRoundsEveryKindOfFloat) {
  // Every upper half with lower halves around the ties; NaNs, infinities and denormals among them.
  std::vector<float> x;
  for (std::uint32_t upper = 0; upper < 0x10000; ++upper) {
    for (std::uint32_t lower : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      x.push_back(std::bit_cast<float>(upper << 16 | lower));
    }
  }
  x.resize(x.size() - 5);  // a tail
  std::vector<float> expected = x;
  for (float& value : expected) value = bf16_to_float(float_to_bf16(value));
  const auto rounds_right = [&](RoundFn* round) {
    Guarded rounded(x.size());
    std::memcpy(rounded.data(), x.data(), x.size() * sizeof(float));
    round(rounded.data(), x.size());
    return rounded.intact() &&
           std::memcmp(rounded.data(), expected.data(), x.size() * sizeof(float)) == 0;
  };
  EXPECT_TRUE(rounds_right(plain::round_bf16));
  if (variant_supported(Variant::kAvx2)) {
    EXPECT_TRUE(rounds_right(avx2::round_bf16));
  }
  if (variant_supported(Variant::kAvx512)) {
    EXPECT_TRUE(rounds_right(avx512::round_bf16));
  }
  std::vector<float> chosen = x;
  round_inputs(DType::kBF16, chosen);
  EXPECT_EQ(std::memcmp(chosen.data(), expected.data(), x.size() * sizeof(float)), 0);
}

TEST(Rope, RotatesByPositionTimesFrequency) {
  constexpr std::int32_t kHeads = 3;
  constexpr double kTheta = 500000;
  constexpr float kFactor = 1.25f;
  for (std::int32_t head_dim : {2, 6, 16, 128}) {
    const std::int32_t half = head_dim / 2;
    std::vector<float> cos(half);
    std::vector<float> sin(half);
    std::vector<float> frequencies(half);
    for (std::int32_t i = 0; i < half; ++i) {
      frequencies[i] = static_cast<float>(std::pow(kTheta, -2.0 * i / head_dim));
    }
    for (std::int64_t position :
         {std::int64_t{0}, std::int64_t{1}, std::int64_t{4095}, std::int64_t{131071}}) {
      rope_table(frequencies, kFactor, position, cos.data(), sin.data());
      const std::vector<float> x = random_floats(static_cast<std::size_t>(kHeads * head_dim), 11);
      std::vector<double> expected(x.size());
      std::vector<double> bound(x.size());
      for (std::int32_t head = 0; head < kHeads; ++head) {
        for (std::int32_t i = 0; i < half; ++i) {
          const double angle = static_cast<float>(position) * frequencies[i];  // an fp32 product
          const std::size_t low = static_cast<std::size_t>(head * head_dim + i);
          const std::size_t high = low + static_cast<std::size_t>(half);
          expected[low] = kFactor * (x[low] * std::cos(angle) - x[high] * std::sin(angle));
          expected[high] = kFactor * (x[high] * std::cos(angle) + x[low] * std::sin(angle));
          // Roundings of cos and sin, of their products with the factor, of each product and of the
          // sum.
          bound[low] = bound[high] =
              kFactor * (5 * kUnitF32 + 1e-9) * (std::abs(x[low]) + std::abs(x[high]));
        }
      }
      Guarded y(x.size());
      std::copy(x.begin(), x.end(), y.data());
      rope(y.data(), kHeads, head_dim, cos.data(), sin.data());
      EXPECT_TRUE(within(expected, y.span(), bound))
          << "head_dim=" << head_dim << " position=" << position;
      EXPECT_TRUE(y.intact());
    }
  }
}

TEST(Rope, PositionZeroChangesNothing) {
  std::vector<float> cos(4);
  std::vector<float> sin(4);
  const std::vector<float> frequencies = {1, 0.1f, 0.01f, 0.001f};
  rope_table(frequencies, 1, 0, cos.data(), sin.data());
  const std::vector<float> x = random_floats(8, 1);
  std::vector<float> y = x;
  rope(y.data(), 1, 8, cos.data(), sin.data());
  EXPECT_EQ(y, x);
}

TEST(Clip, LimitsBothSides) {
  std::vector<float> x = {-9, -2, -1.5f, 0, 1.5f, 2, 9};
  clip(x, 2);
  EXPECT_EQ(x, (std::vector<float>{-2, -2, -1.5f, 0, 1.5f, 2, 2}));
}

TEST(Add, EveryInstructionSetAddsTheSameBits) {
  const std::vector<float> x = random_floats(77, 21);
  const std::vector<float> sum = random_floats(77, 22);
  for (float scale : {1.0f, 0.3f}) {
    std::vector<float> expected = sum;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const volatile float product = scale * x[i];
      expected[i] += product;
    }
    const auto adds_right = [&](AddFn* kernel) {
      Guarded y(x.size());
      std::ranges::copy(sum, y.data());
      kernel(y.data(), x.data(), scale, x.size());
      return y.intact() && std::ranges::equal(y.span(), expected);
    };
    EXPECT_TRUE(adds_right(plain::add));
    if (variant_supported(Variant::kAvx2)) {
      EXPECT_TRUE(adds_right(avx2::add));
    }
    if (variant_supported(Variant::kAvx512)) {
      EXPECT_TRUE(adds_right(avx512::add));
    }
  }
}

TEST(Add, AddsElementwise) {
  std::vector<float> sum = {1, 2, 3};
  const std::vector<float> x = {10, 20, 30};
  add(sum, x.data());
  EXPECT_EQ(sum, (std::vector<float>{11, 22, 33}));
  add(sum, x.data(), 0.5f);
  EXPECT_EQ(sum, (std::vector<float>{16, 32, 48}));
}

}  // namespace
}  // namespace moiety::kernels
