#include "kernels/cpu/avx2_math.h"
#include "kernels/cpu/portable_rows.h"
#include "kernels/implementations.h"

namespace moiety::kernels::avx2 {
namespace {

struct Unit;

/// Sum of squares in 32 lanes: element i belongs to lane i % 32.
float sum_of_squares(const float* x, std::int32_t size) {
  __m256 sums[4] = {};
  std::int32_t i = 0;
  for (; i + 4 * kLanes <= size; i += 4 * kLanes) {
    for (int s = 0; s < 4; ++s) {
      const __m256 value = load(x + i + s * kLanes);
      sums[s] = _mm256_fmadd_ps(value, value, sums[s]);
    }
  }
  for (int s = 0; i < size; ++s, i += kLanes) {
    const __m256 value = size - i >= kLanes ? load(x + i) : load_tail(x + i, size - i);
    sums[s] = _mm256_fmadd_ps(value, value, sums[s]);
  }
  return sum_lanes(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
}

[[gnu::always_inline]] inline __m256 silu_mul(__m256 gate, __m256 up) {
  const __m256 one = _mm256_set1_ps(1.0f);
  const __m256 negative = _mm256_xor_ps(gate, _mm256_set1_ps(-0.0f));
  return _mm256_mul_ps(_mm256_div_ps(gate, _mm256_add_ps(one, exp_f32(negative))), up);
}

}  // namespace

void rms_norm(const float* x, const float* weight, float eps, std::int32_t size, float* y) {
  const float mean = sum_of_squares(x, size) / static_cast<float>(size);
  const __m256 factor = _mm256_set1_ps(1.0f / __builtin_sqrtf(mean + eps));
  std::int32_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_mul_ps(load(x + i), factor), load(weight + i)));
  }
  if (i == size) return;
  const __m256 value = _mm256_mul_ps(load_tail(x + i, size - i), factor);
  store_tail(y + i, _mm256_mul_ps(value, load_tail(weight + i, size - i)), size - i);
}

void silu_mul(float* gate, const float* up, std::size_t size) {
  std::size_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    _mm256_storeu_ps(gate + i, silu_mul(load(gate + i), load(up + i)));
  }
  const auto left = static_cast<std::int32_t>(size - i);
  if (left == 0) return;
  store_tail(gate + i, silu_mul(load_tail(gate + i, left), load_tail(up + i, left)), left);
}

void exp_shifted(const float* z, float shift, std::size_t size, double* e) {
  const __m256 shift8 = _mm256_set1_ps(shift);
  for (std::size_t i = 0; i < size; i += kLanes) {
    const auto left = static_cast<std::int32_t>(size - i < kLanes ? size - i : kLanes);
    alignas(32) float values[kLanes];
    _mm256_store_ps(values, exp_f32(_mm256_sub_ps(load_tail(z + i, left), shift8)));
    for (std::int32_t l = 0; l < left; ++l) e[i + static_cast<std::size_t>(l)] = values[l];
  }
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

}  // namespace moiety::kernels::avx2
