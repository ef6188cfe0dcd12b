#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

/// Building blocks of the AVX-512 variants. Include only in files that are compiled for AVX-512 F,
/// BW, VL and DQ. Every lane computes the same wherever it stands, so tails use the same code on
/// padded vectors.
namespace moiety::kernels::avx512 {

inline constexpr std::int32_t kLanes = 16;
using bf16 = std::uint16_t;

/// Ones for the first `count` lanes; any count: below 0 is none, above 16 all.
[[gnu::always_inline]] inline __mmask16 first_lanes(std::int32_t count) {
  const std::uint32_t some = count <= 0 ? 0 : count >= kLanes ? 0xffffu : (1u << count) - 1;
  return static_cast<__mmask16>(some);
}

/// The sum of sixteen lanes: (i, i + 8) first, then (i, i + 4), then (0, 2) and (1, 3), then both.
[[gnu::always_inline]] inline float sum_lanes(__m512 value) {
  const __m256 eight =
      _mm256_add_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps(value, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

[[gnu::always_inline]] inline float max_lanes(__m512 value) {
  const __m256 eight =
      _mm256_max_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps(value, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/// The upper half of a float holds its BF16: rounds to nearest even, clears the lower half. A NaN
/// keeps its upper bits and becomes quiet.
[[gnu::always_inline]] inline __m512i round_bits(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_and_si512(_mm512_mask_mov_epi32(up, nan, quiet),
                          _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
}

/// e^x to 2 ulp; 0 below -104, infinity above 89, NaN for NaN. Range reduction to |r| <= ln(2) / 2
/// and the polynomial of Cephes' expf (Moshier).
[[gnu::always_inline]] inline __m512 exp_f32(__m512 x) {
  // min and max return their second operand when either is NaN.
  x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);
  x = _mm512_min_ps(_mm512_set1_ps(89.0f), x);
  // Adding 1.5 * 2^23 rounds to the nearest integer.
  const __m512 magic = _mm512_set1_ps(12582912.0f);
  const __m512 n =
      _mm512_sub_ps(_mm512_fmadd_ps(x, _mm512_set1_ps(1.44269504088896341f), magic), magic);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

}  // namespace moiety::kernels::avx512
