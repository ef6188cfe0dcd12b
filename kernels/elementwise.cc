#include "kernels/elementwise.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"
#include "kernels/implementations.h"

namespace moiety::kernels {
namespace {

RmsNormFn* rms_norm_kernel(Variant variant) {
  switch (variant) {
    case Variant::kReference:
      return reference::rms_norm;
    case Variant::kPlain:
      return plain::rms_norm;
    case Variant::kAvx2:
      return avx2::rms_norm;
    case Variant::kAvx512:
    case Variant::kAvx512Bf16:
    case Variant::kAmx:
      return avx512::rms_norm;
  }
  check_failed("unknown variant", __FILE__, __LINE__);
}

/// What gives the same bits in every variant.
struct ExactKernels {
  RoundFn* round_bf16;
  AddFn* add;
};

const ExactKernels& exact_kernels() {
  static const ExactKernels kernels = {
      widest(plain::round_bf16, avx2::round_bf16, avx512::round_bf16),
      widest(plain::add, avx2::add, avx512::add)};
  return kernels;
}

}  // namespace

void round_inputs(DType dtype, std::span<float> x) {
  MOIETY_CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "inputs are F32 or BF16");
  if (dtype == DType::kF32) return;
  exact_kernels().round_bf16(x.data(), x.size());
}

void rms_norm(
    Variant variant, const float* x, const float* weight, float eps, std::int32_t size, float* y) {
  if (size > 0) rms_norm_kernel(variant)(x, weight, eps, size, y);
}

void rope(
    float* x, std::int32_t num_heads, std::int32_t head_dim, const float* cos, const float* sin) {
  MOIETY_CHECK(head_dim % 2 == 0, "a rotary head has an even size");
  const std::int32_t half = head_dim / 2;
  for (std::int32_t head = 0; head < num_heads; ++head) {
    float* low = x + static_cast<std::ptrdiff_t>(head) * head_dim;
    float* high = low + half;
    for (std::int32_t i = 0; i < half; ++i) {
      const float a = low[i];
      const float b = high[i];
      low[i] = a * cos[i] - b * sin[i];
      high[i] = b * cos[i] + a * sin[i];
    }
  }
}

void rope_table(std::span<const float> frequencies,
                float factor,
                std::int64_t position,
                float* cos,
                float* sin) {
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const double angle = static_cast<float>(position) * frequencies[i];
    cos[i] = static_cast<float>(std::cos(angle)) * factor;
    sin[i] = static_cast<float>(std::sin(angle)) * factor;
  }
}

void clip(std::span<float> x, float limit) {
  for (float& value : x) value = std::clamp(value, -limit, limit);
}

void add(std::span<float> accumulator, const float* x, float scale) {
  exact_kernels().add(accumulator.data(), x, scale, accumulator.size());
}

}  // namespace moiety::kernels
