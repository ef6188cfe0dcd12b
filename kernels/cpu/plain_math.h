#pragma once

#include <bit>
#include <cstdint>

#include "common/dtype.h"

/// Building blocks of the portable variant.
namespace moiety::kernels::plain {

inline constexpr std::int32_t kLanes = 8;

inline float load(float value) { return value; }
inline float load(bf16 value) { return bf16_to_float(value); }

/// e^x to 2 ulp; 0 below -104, infinity above 89, NaN for NaN. Range reduction to |r| <= ln(2) / 2
/// and the polynomial of Cephes' expf (Moshier), without tables or branches, so that compilers
/// vectorise it.
inline float exp_f32(float x) {
  // Written so that a NaN passes through both.
  const float low = x < -104.0f ? -104.0f : x;
  const float clamped = low > 89.0f ? 89.0f : low;
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
  const float shifted = clamped * 1.44269504088896341f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * (r * r) + r) + 1.0f;
  // 2^n in two factors: n reaches 128 and -150, which one float exponent cannot hold.
  const auto exponent = std::bit_cast<std::int32_t>(shifted) - 0x4b400000;
  const std::int32_t half = exponent >> 1;
  const auto scale = [](std::int32_t e) { return std::bit_cast<float>((e + 127) << 23); };
  return p * scale(half) * scale(exponent - half);
}

/// Sum of a[i] * b[i]: eight partial sums, then these in order.
template <class T>
float dot(const float* a, const T* b, std::int32_t size) {
  float lane[kLanes] = {};
  std::int32_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (std::int32_t l = 0; l < kLanes; ++l) lane[l] += a[i + l] * load(b[i + l]);
  }
  for (std::int32_t l = 0; i + l < size; ++l) lane[l] += a[i + l] * load(b[i + l]);
  float sum = 0;
  for (float value : lane) sum += value;
  return sum;
}

}  // namespace moiety::kernels::plain
