#pragma once

#include <cstddef>
#include <cstdint>

#include "common/dtype.h"

namespace moiety {

/// How much memory packed weights take, for those who plan with it and for kernels/packed_matrix.h,
/// which describes the layout. All of it is a function of the shape.

/// Columns of a panel.
inline constexpr std::int32_t kPackedPanel = 16;

/// 32-bit words that k weights of one column take: one each as F32, pairs of BF16, fours of I8; the
/// last one is padded.
inline std::int32_t packed_words(DType dtype, std::int32_t k) {
  switch (dtype) {
    case DType::kBF16:
      return k / 2 + k % 2;
    case DType::kI8:
      return k / 4 + (k % 4 != 0 ? 1 : 0);
    default:
      return k;
  }
}

/// Bytes of one panel's weights.
inline std::size_t packed_panel_bytes(DType dtype, std::int32_t k) {
  return static_cast<std::size_t>(packed_words(dtype, k)) * kPackedPanel * 4;
}

/// Bytes of a packed matrix [n, k]: whole panels, and for I8 a float per column of them.
inline std::size_t packed_matrix_bytes(DType dtype, std::int32_t n, std::int32_t k) {
  const auto panels = static_cast<std::size_t>((std::int64_t{n} + kPackedPanel - 1) / kPackedPanel);
  const std::size_t scale_bytes = dtype == DType::kI8 ? kPackedPanel * sizeof(float) : 0;
  return panels * (packed_panel_bytes(dtype, k) + scale_bytes);
}

}  // namespace moiety
