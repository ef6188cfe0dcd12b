#include "kernels/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "common/check.h"

namespace moiety::kernels {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr std::int32_t kPanel = PackedMatrix::kPanel;

/// Elements of one panel.
std::size_t panel_elements(DType dtype, std::int32_t k) {
  const auto padded_k = static_cast<std::size_t>(dtype == DType::kBF16 ? k + k % 2 : k);
  return padded_k * kPanel;
}

/// Where (column in panel, k) lives within a panel.
std::size_t panel_index(DType dtype, std::int32_t column, std::int32_t k) {
  if (dtype == DType::kF32) return static_cast<std::size_t>(k) * kPanel + column;
  return (static_cast<std::size_t>(k / 2) * kPanel + column) * 2 + k % 2;
}

}  // namespace

void PackedMatrix::Free::operator()(std::byte* p) const { ::operator delete[](p, kAlignment); }

PackedMatrix::PackedMatrix(DType dtype,
                           std::int32_t n,
                           std::int32_t k,
                           std::span<const float> weights)
    : dtype_(dtype), n_(n), k_(k) {
  MOIETY_CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "weights are packed as F32 or BF16");
  MOIETY_CHECK(n >= 0 && k >= 0, "a matrix has no negative size");
  MOIETY_CHECK(weights.size() == static_cast<std::size_t>(n) * static_cast<std::size_t>(k),
               "the weights do not fill [n, k]");
  const std::size_t per_panel = panel_elements(dtype, k);
  num_bytes_ = static_cast<std::size_t>(num_panels()) * per_panel * dtype_bytes(dtype);
  data_.reset(
      static_cast<std::byte*>(::operator new[](std::max<std::size_t>(num_bytes_, 1), kAlignment)));
  std::memset(data_.get(), 0, num_bytes_);
  for (std::int32_t row = 0; row < n; ++row) {
    const float* source =
        weights.data() + static_cast<std::size_t>(row) * static_cast<std::size_t>(k);
    const std::size_t panel = static_cast<std::size_t>(row / kPanel) * per_panel;
    const std::int32_t column = row % kPanel;
    if (dtype == DType::kF32) {
      auto* target = reinterpret_cast<float*>(data_.get()) + panel;
      for (std::int32_t i = 0; i < k; ++i) target[panel_index(dtype, column, i)] = source[i];
    } else {
      auto* target = reinterpret_cast<bf16*>(data_.get()) + panel;
      for (std::int32_t i = 0; i < k; ++i) {
        target[panel_index(dtype, column, i)] = float_to_bf16(source[i]);
      }
    }
  }
}

const float* PackedMatrix::panel_f32(std::int32_t panel) const {
  MOIETY_CHECK(dtype_ == DType::kF32, "these weights are not F32");
  return reinterpret_cast<const float*>(data_.get()) +
         static_cast<std::size_t>(panel) * panel_elements(dtype_, k_);
}

const bf16* PackedMatrix::panel_bf16(std::int32_t panel) const {
  MOIETY_CHECK(dtype_ == DType::kBF16, "these weights are not BF16");
  return reinterpret_cast<const bf16*>(data_.get()) +
         static_cast<std::size_t>(panel) * panel_elements(dtype_, k_);
}

float PackedMatrix::at(std::int32_t row_n, std::int32_t col_k) const {
  MOIETY_CHECK(row_n >= 0 && row_n < n_ && col_k >= 0 && col_k < k_, "outside the matrix");
  const std::size_t index = panel_index(dtype_, row_n % kPanel, col_k);
  if (dtype_ == DType::kF32) return panel_f32(row_n / kPanel)[index];
  return bf16_to_float(panel_bf16(row_n / kPanel)[index]);
}

}  // namespace moiety::kernels
