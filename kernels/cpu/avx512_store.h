#pragma once

#include <immintrin.h>

#include "kernels/cpu/unrolled.h"
#include "kernels/implementations.h"

namespace moiety::kernels {

/// Writes the sums of kRows rows x kPanels panels from `panel` and `row` on.
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
      _mm512_mask_storeu_ps(y + r.value * tile.y_stride, mask, sums[r.value][p.value]);
    });
  });
}

/// Outputs from a panel's integer sums, of weights + 128, of one row; `column` is the panel's
/// first.
[[gnu::always_inline]] inline __m512 scaled_integers(const LinearTile& tile,
                                                     std::int32_t row,
                                                     std::int32_t column,
                                                     __m512i sums) {
  const __m512i offset = _mm512_set1_epi32(static_cast<std::int32_t>(tile.x_offsets[row]));
  const __m512 products = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, offset));
  return _mm512_mul_ps(_mm512_mul_ps(products, _mm512_loadu_ps(tile.scales + column)),
                       _mm512_set1_ps(tile.x_scales[row]));
}

}  // namespace moiety::kernels
