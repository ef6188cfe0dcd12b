#pragma once

#include <immintrin.h>

#include <cstdint>

/// Building blocks of the AVX2 variant. Include only in *_avx2.cc, which are compiled with -mavx2
/// -mfma. Every lane computes the same wherever it stands, so tails use the same code on padded
/// vectors.
namespace moiety::kernels::avx2 {

inline constexpr std::int32_t kLanes = 8;
using bf16 = std::uint16_t;

/// All ones in the first `count` lanes; 0 <= count <= 8.
[[gnu::always_inline]] inline __m256i lane_mask(std::int32_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

[[gnu::always_inline]] inline __m256 load(const float* p) { return _mm256_loadu_ps(p); }
[[gnu::always_inline]] inline __m256 load(const bf16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/// The first `count` elements, zeros behind; touches no memory beyond them.
[[gnu::always_inline]] inline __m256 load_tail(const float* p, std::int32_t count) {
  return _mm256_maskload_ps(p, lane_mask(count));
}
[[gnu::always_inline]] inline __m256 load_tail(const bf16* p, std::int32_t count) {
  bf16 padded[kLanes] = {};
  for (std::int32_t i = 0; i < count; ++i) padded[i] = p[i];
  return load(padded);
}

[[gnu::always_inline]] inline void store_tail(float* p, __m256 value, std::int32_t count) {
  _mm256_maskstore_ps(p, lane_mask(count), value);
}

/// The sum of eight lanes: (i, i + 4) first, then (0, 2) and (1, 3), then both.
[[gnu::always_inline]] inline float sum_lanes(__m256 value) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

[[gnu::always_inline]] inline float max_lanes(__m256 value) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/// e^x to 2 ulp; 0 below -104, infinity above 89, NaN for NaN. Range reduction to |r| <= ln(2) / 2
/// and the polynomial of Cephes' expf (Moshier).
[[gnu::always_inline]] inline __m256 exp_f32(__m256 x) {
  // min and max return their second operand when either is NaN.
  x = _mm256_max_ps(_mm256_set1_ps(-104.0f), x);
  x = _mm256_min_ps(_mm256_set1_ps(89.0f), x);
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
  const __m256 magic = _mm256_set1_ps(12582912.0f);
  const __m256 shifted = _mm256_fmadd_ps(x, _mm256_set1_ps(1.44269504088896341f), magic);
  const __m256 n = _mm256_sub_ps(shifted, magic);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
  p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
  // 2^n in two factors: n reaches 128 and -150, which one float exponent cannot hold.
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i exponent =
      _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_castps_si256(magic));
  const __m256i half = _mm256_srai_epi32(exponent, 1);
  const __m256i rest = _mm256_sub_epi32(exponent, half);
  p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
  return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}

}  // namespace moiety::kernels::avx2
