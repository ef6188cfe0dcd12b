#include <algorithm>

#include "kernels/cpu/plain_math.h"
#include "kernels/implementations.h"

namespace moiety::kernels::plain {
namespace {

void row_f32(const float* weights, const float* x, std::int32_t k, float* sum) {
  for (std::int32_t i = 0; i < k; ++i) {
    for (std::int32_t c = 0; c < kPanelColumns; ++c) sum[c] += x[i] * weights[c];
    weights += kPanelColumns;
  }
}

void row_bf16(const bf16* weights, const float* x, std::int32_t k, float* sum) {
  for (std::int32_t i = 0; i < k; ++i) {
    const bf16* column = weights + std::ptrdiff_t{i / 2} * 2 * kPanelColumns + i % 2;
    for (std::int32_t c = 0; c < kPanelColumns; ++c) sum[c] += x[i] * load(column[2 * c]);
  }
}

void row_i8(const std::int8_t* weights, const float* x, std::int32_t k, float* sum) {
  for (std::int32_t i = 0; i < k; ++i) {
    const std::int8_t* column = weights + std::ptrdiff_t{i / 2} * 2 * kPanelColumns + i % 2;
    for (std::int32_t c = 0; c < kPanelColumns; ++c) {
      sum[c] += x[i] * static_cast<float>(column[2 * c]);
    }
  }
}

}  // namespace

void linear_tile(const LinearTile& tile) {
  for (std::int32_t panel = tile.panel_begin; panel < tile.panel_end; ++panel) {
    const std::byte* weights = tile.weights + panel * tile.panel_bytes;
    const std::int32_t first = panel * kPanelColumns;
    const std::int32_t columns = std::min(kPanelColumns, tile.n - first);
    for (std::int32_t row = 0; row < tile.rows; ++row) {
      const float* x = tile.x + row * tile.x_stride;
      float* y = tile.y + row * tile.y_stride + (first - tile.panel_begin * kPanelColumns);
      float sum[kPanelColumns] = {};
      switch (tile.type) {
        case WeightType::kF32:
          row_f32(reinterpret_cast<const float*>(weights), x, tile.k, sum);
          break;
        case WeightType::kBF16:
          row_bf16(reinterpret_cast<const bf16*>(weights), x, tile.k, sum);
          break;
        case WeightType::kI8:
          row_i8(reinterpret_cast<const std::int8_t*>(weights), x, tile.k, sum);
          for (std::int32_t c = 0; c < kPanelColumns; ++c) sum[c] *= tile.scales[first + c];
          break;
      }
      std::copy_n(sum, columns, y);
    }
  }
}

}  // namespace moiety::kernels::plain
