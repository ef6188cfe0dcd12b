#include "common/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

namespace moiety {
namespace {

TEST(Bf16, RoundsToNearestTiesToEven) {
  // One unit in the last place of a bf16 at 1 is 2^-7.
  EXPECT_EQ(bf16_to_float(float_to_bf16(1.0f)), 1.0f);
  EXPECT_EQ(bf16_to_float(float_to_bf16(1.0f + 0x1p-8f)), 1.0f) << "tie, even is below";
  EXPECT_EQ(bf16_to_float(float_to_bf16(1.0f + 0x1p-7f + 0x1p-8f)), 1.0f + 0x1p-6f)
      << "tie, even is above";
  EXPECT_EQ(bf16_to_float(float_to_bf16(1.0f + 0x1p-8f + 0x1p-23f)), 1.0f + 0x1p-7f)
      << "above the tie";
  EXPECT_EQ(bf16_to_float(float_to_bf16(1.0f + 0x1p-8f - 0x1p-23f)), 1.0f) << "below the tie";
  EXPECT_EQ(bf16_to_float(float_to_bf16(-1.0f - 0x1p-7f - 0x1p-8f)), -1.0f - 0x1p-6f);
}

TEST(Bf16, EveryValueComesBack) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = bf16_to_float(static_cast<bf16>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(value)))) << bits;
    } else {
      EXPECT_EQ(float_to_bf16(value), bits);
    }
  }
}

TEST(Bf16, KeepsInfinitiesNansAndSigns) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(bf16_to_float(float_to_bf16(infinity)), infinity);
  EXPECT_EQ(bf16_to_float(float_to_bf16(-infinity)), -infinity);
  EXPECT_EQ(bf16_to_float(float_to_bf16(std::numeric_limits<float>::max())), infinity);
  EXPECT_TRUE(std::signbit(bf16_to_float(float_to_bf16(-0.0f))));
  // NaNs whose payload is all in the half that is cut off, and the one that rounding up would wrap.
  for (std::uint32_t bits : {0x7f800001u, 0xff800001u, 0x7fffffffu, 0xffffffffu, 0x7fc00000u}) {
    const float nan = bf16_to_float(float_to_bf16(std::bit_cast<float>(bits)));
    EXPECT_TRUE(std::isnan(nan)) << std::hex << bits;
    EXPECT_EQ(std::signbit(nan), (bits >> 31) != 0) << std::hex << bits;
  }
}

TEST(F16, EveryPatternIsTheCompilersHalf) {
#ifdef __FLT16_MAX__
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto pattern = static_cast<std::uint16_t>(bits);
    _Float16 half;
    std::memcpy(&half, &pattern, sizeof half);
    const float expected = static_cast<float>(half);
    const float actual = f16_to_float(pattern);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(actual)) << bits;
    } else {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(actual), std::bit_cast<std::uint32_t>(expected))
          << bits;
    }
  }
#else
  GTEST_SKIP() << "this compiler has no _Float16";
#endif
}

TEST(DType, NamesAndSizesRoundTrip) {
  for (auto [name, bytes] :
       {std::pair{"F32", 4u}, {"BF16", 2u}, {"F16", 2u}, {"I64", 8u}, {"I32", 4u}}) {
    const auto dtype = parse_dtype(name);
    ASSERT_TRUE(dtype) << name;
    EXPECT_EQ(dtype_name(*dtype), name);
    EXPECT_EQ(dtype_bytes(*dtype), bytes);
  }
  const auto unknown = parse_dtype("F8");
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(unknown.error().message.find("F8"), std::string::npos);
}

}  // namespace
}  // namespace moiety
