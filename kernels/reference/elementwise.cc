#include <cmath>

#include "kernels/implementations.h"

namespace moiety::kernels::reference {

void rms_norm(const float* x, const float* weight, float eps, std::int32_t size, float* y) {
  double sum = 0;
  for (std::int32_t i = 0; i < size; ++i) sum += static_cast<double>(x[i]) * x[i];
  const double factor = 1.0 / std::sqrt(sum / size + eps);
  for (std::int32_t i = 0; i < size; ++i) y[i] = static_cast<float>(x[i] * factor * weight[i]);
}

void silu_mul(float* gate, const float* up, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i) {
    const double g = gate[i];
    gate[i] = static_cast<float>(g / (1.0 + std::exp(-g)) * up[i]);
  }
}

void exp_shifted(const float* z, float shift, std::size_t size, double* e) {
  for (std::size_t i = 0; i < size; ++i) e[i] = std::exp(static_cast<double>(z[i]) - shift);
}

}  // namespace moiety::kernels::reference
