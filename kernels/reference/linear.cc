#include <algorithm>
#include <array>
#include <cmath>

#include "common/dtype.h"
#include "kernels/implementations.h"
#include "kernels/packed_matrix.h"

namespace moiety::kernels::reference {
namespace {

float weight_at(const LinearTile& tile, std::int32_t panel, std::int32_t column, std::int32_t k) {
  const std::byte* base = tile.weights + panel * tile.panel_bytes;
  const auto index = [&](std::int32_t per_word) {
    return (std::ptrdiff_t{k / per_word} * PackedMatrix::kPanel + column) * per_word + k % per_word;
  };
  switch (tile.type) {
    case WeightType::kBF16:
      return bf16_to_float(reinterpret_cast<const bf16*>(base)[index(2)]);
    case WeightType::kI8:
      return static_cast<float>(std::to_integer<int>(base[index(4)]) - 128);
    default:
      return reinterpret_cast<const float*>(
          base)[std::ptrdiff_t{k} * PackedMatrix::kPanel + column];
  }
}

double input_at(const LinearTile& tile, std::int32_t row, std::int32_t k) {
  const std::byte* x = tile.x + row * tile.x_stride;
  if (tile.type == WeightType::kI8) return reinterpret_cast<const std::int16_t*>(x)[k];
  return reinterpret_cast<const float*>(x)[k];
}

}  // namespace

void linear_tile(const LinearTile& tile) {
  for (std::int32_t panel = tile.panel_begin; panel < tile.panel_end; ++panel) {
    const std::int32_t first = panel * PackedMatrix::kPanel;
    const std::int32_t columns = std::min(PackedMatrix::kPanel, tile.n - first);
    for (std::int32_t row = 0; row < tile.rows; ++row) {
      std::array<double, PackedMatrix::kPanel> sum{};
      for (std::int32_t k = 0; k < tile.k; ++k) {
        for (std::int32_t column = 0; column < columns; ++column) {
          sum[column] += input_at(tile, row, k) * weight_at(tile, panel, column, k);
        }
      }
      float* y = tile.y + row * tile.y_stride + (first - tile.panel_begin * PackedMatrix::kPanel);
      for (std::int32_t column = 0; column < columns; ++column) {
        const double scale = tile.type == WeightType::kI8
                                 ? double{tile.x_scales[row]} * tile.scales[first + column]
                                 : 1.0;
        y[column] = static_cast<float>(sum[column] * scale);
      }
    }
  }
}

void linear_magnitude(const PackedMatrix& w, const float* x, std::int32_t m, double* y) {
  for (std::int32_t row = 0; row < m; ++row) {
    for (std::int32_t n = 0; n < w.n(); ++n) {
      double sum = 0;
      for (std::int32_t k = 0; k < w.k(); ++k) {
        sum += std::abs(x[std::ptrdiff_t{row} * w.k() + k] * w.at(n, k));
      }
      y[std::ptrdiff_t{row} * w.n() + n] = sum;
    }
  }
}

}  // namespace moiety::kernels::reference
