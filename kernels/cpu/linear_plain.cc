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

/// Of weights + 128, modulo 2^32.
void row_i8(const std::uint8_t* weights,
            const std::int16_t* x,
            std::int32_t k,
            std::uint32_t* sum) {
  for (std::int32_t i = 0; i < k; ++i) {
    const std::uint8_t* column = weights + std::ptrdiff_t{i / 4} * 4 * kPanelColumns + i % 4;
    for (std::int32_t c = 0; c < kPanelColumns; ++c) {
      sum[c] += static_cast<std::uint32_t>(std::int32_t{x[i]} * column[4 * c]);
    }
  }
}

void scale(const LinearTile& tile,
           std::int32_t row,
           std::int32_t column,
           const std::uint32_t* sum,
           float* y) {
  for (std::int32_t c = 0; c < kPanelColumns; ++c) {
    const auto product = static_cast<std::int32_t>(sum[c] - tile.x_offsets[row]);
    y[c] = static_cast<float>(product) * tile.scales[column + c] * tile.x_scales[row];
  }
}

}  // namespace

void linear_tile(const LinearTile& tile) {
  for (std::int32_t panel = tile.panel_begin; panel < tile.panel_end; ++panel) {
    const std::byte* weights = tile.weights + panel * tile.panel_bytes;
    const std::int32_t first = panel * kPanelColumns;
    const std::int32_t columns = std::min(kPanelColumns, tile.n - first);
    for (std::int32_t row = 0; row < tile.rows; ++row) {
      const std::byte* x = tile.x + row * tile.x_stride;
      const auto* floats = reinterpret_cast<const float*>(x);
      float* y = tile.y + row * tile.y_stride + (first - tile.panel_begin * kPanelColumns);
      float sum[kPanelColumns] = {};
      switch (tile.type) {
        case WeightType::kF32:
          row_f32(reinterpret_cast<const float*>(weights), floats, tile.k, sum);
          break;
        case WeightType::kBF16:
          row_bf16(reinterpret_cast<const bf16*>(weights), floats, tile.k, sum);
          break;
        case WeightType::kI8:
          std::uint32_t integers[kPanelColumns] = {};
          row_i8(reinterpret_cast<const std::uint8_t*>(weights),
                 reinterpret_cast<const std::int16_t*>(x), tile.k, integers);
          scale(tile, row, first, integers, sum);
          break;
      }
      std::copy_n(sum, columns, y);
    }
  }
}

}  // namespace moiety::kernels::plain
