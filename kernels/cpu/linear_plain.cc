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

}  // namespace

void linear_tile(const LinearTile& tile) {
  for (std::int32_t panel = tile.panel_begin; panel < tile.panel_end; ++panel) {
    const std::byte* weights = tile.weights + panel * tile.panel_bytes;
    const std::int32_t first = panel * kPanelColumns;
    const std::int32_t columns = std::min(kPanelColumns, tile.n - first);
    for (std::int32_t row = 0; row < tile.rows; ++row) {
      const float* x = tile.x + std::ptrdiff_t{row} * tile.k;
      float sum[kPanelColumns] = {};
      if (!tile.is_bf16) {
        row_f32(reinterpret_cast<const float*>(weights), x, tile.k, sum);
      } else {
        row_bf16(reinterpret_cast<const bf16*>(weights), x, tile.k, sum);
      }
      std::copy_n(sum, columns, tile.y + std::ptrdiff_t{row} * tile.n + first);
    }
  }
}

}  // namespace moiety::kernels::plain
