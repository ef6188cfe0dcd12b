#include "kernels/cpu/avx512_math.h"
#include "kernels/cpu/portable_rows.h"
#include "kernels/implementations.h"

namespace moiety::kernels::avx512 {
namespace {

struct Unit;

/// Sum of squares in 64 lanes: element i belongs to lane i % 64.
float sum_of_squares(const float* x, std::int32_t size) {
  __m512 sums[4] = {};
  std::int32_t i = 0;
  for (; i + 4 * kLanes <= size; i += 4 * kLanes) {
    for (int s = 0; s < 4; ++s) {
      const __m512 value = _mm512_loadu_ps(x + i + s * kLanes);
      sums[s] = _mm512_fmadd_ps(value, value, sums[s]);
    }
  }
  for (int s = 0; i < size; ++s, i += kLanes) {
    const __m512 value = _mm512_maskz_loadu_ps(first_lanes(size - i), x + i);
    sums[s] = _mm512_fmadd_ps(value, value, sums[s]);
  }
  return sum_lanes(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

/// Calls body(index, mask) for every vector of `size` elements; the last one may be a part.
template <class Body>
[[gnu::always_inline]] inline void for_vectors(std::size_t size, const Body& body) {
  std::size_t i = 0;
  for (; i + kLanes <= size; i += kLanes) body(i, __mmask16{0xffff});
  if (i < size) body(i, first_lanes(static_cast<std::int32_t>(size - i)));
}

}  // namespace

void rms_norm(const float* x, const float* weight, float eps, std::int32_t size, float* y) {
  const float mean = sum_of_squares(x, size) / static_cast<float>(size);
  const __m512 factor = _mm512_set1_ps(1.0f / __builtin_sqrtf(mean + eps));
  for_vectors(
      static_cast<std::size_t>(size), [&](std::size_t i,
                                          __mmask16 mask) __attribute__((always_inline)) {
        const __m512 value = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), factor);
        const __m512 scaled = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(mask, weight + i));
        _mm512_mask_storeu_ps(y + i, mask, scaled);
      });
}

void silu_mul(float* gate, const float* up, std::size_t size) {
  for_vectors(
      size, [&](std::size_t i, __mmask16 mask) __attribute__((always_inline)) {
        const __m512 value = _mm512_maskz_loadu_ps(mask, gate + i);
        const __m512 negative = _mm512_xor_ps(value, _mm512_set1_ps(-0.0f));
        const __m512 divisor = _mm512_add_ps(_mm512_set1_ps(1.0f), exp_f32(negative));
        const __m512 product =
            _mm512_mul_ps(_mm512_div_ps(value, divisor), _mm512_maskz_loadu_ps(mask, up + i));
        _mm512_mask_storeu_ps(gate + i, mask, product);
      });
}

void exp_shifted(const float* z, float shift, std::size_t size, double* e) {
  const __m512 shift16 = _mm512_set1_ps(shift);
  for_vectors(
      size, [&](std::size_t i, __mmask16 mask) __attribute__((always_inline)) {
        const __m512 value = exp_f32(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, z + i), shift16));
        const __m256 high = _mm512_extractf32x8_ps(value, 1);
        _mm512_mask_storeu_pd(e + i, static_cast<__mmask8>(mask),
                              _mm512_cvtps_pd(_mm512_castps512_ps256(value)));
        _mm512_mask_storeu_pd(e + i + 8, static_cast<__mmask8>(mask >> 8), _mm512_cvtps_pd(high));
      });
}

void round_bf16(float* x, std::size_t size) { round_bf16_rows<Unit>(x, size); }

void add(float* sum, const float* x, float scale, std::size_t size) {
  add_rows<Unit>(sum, x, scale, size);
}

std::uint32_t magnitude(const float* x, std::size_t size) {
  return largest_magnitude<Unit>(x, size);
}

FixedPointSums fixed_point(const float* x, std::size_t size, float factor, std::int16_t* q) {
  return to_fixed_point_row<Unit>(x, size, factor, q);
}

void digits(std::int16_t* q, std::int32_t blocks) { split_digits_of<Unit>(q, blocks); }

float quantise(const std::uint16_t* row, std::size_t size, std::uint8_t* bytes) {
  return quantise_row<Unit>(row, size, bytes);
}

}  // namespace moiety::kernels::avx512
