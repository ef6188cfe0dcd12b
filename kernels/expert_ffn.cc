#include "kernels/expert_ffn.h"

#include "common/check.h"
#include "kernels/elementwise.h"
#include "kernels/implementations.h"
#include "kernels/linear.h"

namespace moiety::kernels {
namespace {

SiluMulFn* silu_mul_kernel(Variant variant) {
  switch (variant) {
    case Variant::kReference:
      return reference::silu_mul;
    case Variant::kPlain:
      return plain::silu_mul;
    case Variant::kAvx2:
      return avx2::silu_mul;
  }
  check_failed("unknown variant", __FILE__, __LINE__);
}

}  // namespace

std::size_t expert_scratch_floats(const ExpertWeights& weights, std::int32_t m) {
  return 2 * static_cast<std::size_t>(m) * static_cast<std::size_t>(weights.gate.n());
}

void expert_ffn(Variant variant,
                const ExpertWeights& weights,
                const float* x,
                std::int32_t m,
                float* y,
                std::span<float> scratch) {
  const auto& [gate, up, down] = weights;
  MOIETY_CHECK(up.n() == gate.n() && up.k() == gate.k(), "gate and up differ in shape");
  MOIETY_CHECK(down.n() == gate.k() && down.k() == gate.n(), "down does not fit gate");
  MOIETY_CHECK(scratch.size() >= expert_scratch_floats(weights, m), "scratch is too small");
  if (m == 0) return;

  const std::span<float> hidden = scratch.first(expert_scratch_floats(weights, m) / 2);
  const std::span<float> upper = scratch.subspan(hidden.size(), hidden.size());
  linear_serial(variant, gate, x, m, hidden.data());
  linear_serial(variant, up, x, m, upper.data());
  silu_mul_kernel(variant)(hidden.data(), upper.data(), hidden.size());
  round_inputs(down.dtype(), hidden);
  linear_serial(variant, down, hidden.data(), m, y);
}

}  // namespace moiety::kernels
