#include <cmath>

#include "kernels/cpu/plain_math.h"
#include "kernels/cpu/portable_rows.h"
#include "kernels/implementations.h"

namespace moiety::kernels::plain {
namespace {
struct Unit;
}

void rms_norm(const float* x, const float* weight, float eps, std::int32_t size, float* y) {
  const float factor = 1.0f / std::sqrt(dot(x, x, size) / static_cast<float>(size) + eps);
  for (std::int32_t i = 0; i < size; ++i) y[i] = x[i] * factor * weight[i];
}

void silu_mul(float* gate, const float* up, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i) gate[i] = gate[i] / (1.0f + exp_f32(-gate[i])) * up[i];
}

void exp_shifted(const float* z, float shift, std::size_t size, double* e) {
  for (std::size_t i = 0; i < size; ++i) e[i] = exp_f32(z[i] - shift);
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

}  // namespace moiety::kernels::plain
