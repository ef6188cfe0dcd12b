#pragma once

#include <immintrin.h>

#include "kernels/cpu/unrolled.h"
#include "kernels/implementations.h"

namespace moiety::kernels {

/// Writes the sums of kRows rows x kPanels panels from `panel` and `row` on; I8 sums are scaled.
template <int kRows, int kPanels>
[[gnu::always_inline]] inline void store_sums(const LinearTile& tile,
                                              std::int32_t panel,
                                              std::int32_t row,
                                              const __m512 (&sums)[kRows][kPanels]) {
  unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
    const std::int32_t column = (panel + p.value) * kPanelColumns;
    const std::int32_t left = tile.n - column;
    const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffffu : (1u << left) - 1);
    float* y = tile.y + row * tile.y_stride + (column - tile.panel_begin * kPanelColumns);
    unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
      __m512 sum = sums[r.value][p.value];
      if (tile.scales != nullptr) sum = _mm512_mul_ps(sum, _mm512_loadu_ps(tile.scales + column));
      _mm512_mask_storeu_ps(y + r.value * tile.y_stride, mask, sum);
    });
  });
}

}  // namespace moiety::kernels
