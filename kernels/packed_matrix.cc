#include "kernels/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/check.h"
#include "common/packed_layout.h"
#include "kernels/implementations.h"
#include "kernels/variant.h"
#include "kernels/weight_memory.h"

namespace moiety::kernels {
namespace {

constexpr std::int32_t kPanel = PackedMatrix::kPanel;
static_assert(kPanel == kPackedPanel);
constexpr std::size_t kAlignment = 64;

// I8 is held as q + 128.
constexpr int kI8Offset = 128;

/// Where (column in panel, k) lives within a panel, in elements.
std::size_t panel_index(DType dtype, std::int32_t column, std::int32_t k) {
  const std::int32_t per_word = 4 / static_cast<std::int32_t>(dtype_bytes(dtype));
  return (static_cast<std::size_t>(k / per_word) * kPanel + column) * per_word + k % per_word;
}

/// [rows <= 16] x k elements as floats.
void read_floats(DType source, const std::byte* row, std::int32_t k, float* out) {
  if (source == DType::kF32) {
    std::memcpy(out, row, static_cast<std::size_t>(k) * sizeof(float));
    return;
  }
  for (std::int32_t i = 0; i < k; ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, row + static_cast<std::size_t>(i) * 2, 2);
    out[i] = source == DType::kBF16 ? bf16_to_float(bits) : f16_to_float(bits);
  }
}

/// A row as BF16 pairs, the last one padded with zero.
void read_pairs(DType source, const std::byte* row, std::int32_t k, std::uint32_t* pairs) {
  pairs[packed_words(DType::kBF16, k) - 1] = 0;
  if (source == DType::kBF16) {
    std::memcpy(pairs, row, static_cast<std::size_t>(k) * 2);
    return;
  }
  for (std::int32_t i = 0; i < k; ++i) {
    float value;
    if (source == DType::kF32) {
      std::memcpy(&value, row + static_cast<std::size_t>(i) * 4, 4);
    } else {
      std::uint16_t bits;
      std::memcpy(&bits, row + static_cast<std::size_t>(i) * 2, 2);
      value = f16_to_float(bits);
    }
    const std::uint32_t half = float_to_bf16(value);
    if (i % 2 == 0) {
      pairs[i / 2] = half;
    } else {
      pairs[i / 2] |= half << 16;
    }
  }
}

/// Rows of 32-bit words [rows, words] into the panel's [words, 16].
void interleave(const std::uint32_t* rows,
                std::int32_t num_rows,
                std::int32_t words,
                std::uint32_t* panel) {
  constexpr std::int32_t kBlock = 16;
  for (std::int32_t begin = 0; begin < words; begin += kBlock) {
    const std::int32_t end = std::min(words, begin + kBlock);
    for (std::int32_t row = 0; row < num_rows; ++row) {
      const std::uint32_t* source = rows + static_cast<std::size_t>(row) * words;
      for (std::int32_t i = begin; i < end; ++i) panel[i * kPanel + row] = source[i];
    }
  }
}

}  // namespace

void PackedMatrix::Free::operator()(std::byte* p) const { free_weights(p); }

PackedMatrix PackedMatrix::unfilled(DType dtype, std::int32_t n, std::int32_t k) {
  MOIETY_CHECK(dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kI8,
               "weights are packed as F32, BF16 or I8");
  MOIETY_CHECK(n >= 0 && k >= 0, "a matrix has no negative size");
  PackedMatrix matrix;
  matrix.dtype_ = dtype;
  matrix.n_ = n;
  matrix.k_ = k;
  if (matrix.num_panels() == 0) return matrix;
  matrix.data_.reset(
      allocate_weights(matrix.scales_offset() + matrix.num_panels() * matrix.scale_bytes()));
  // The columns that the last panel has beyond n.
  std::memset(matrix.data_.get() + (matrix.num_panels() - 1) * matrix.panel_bytes(), 0,
              matrix.panel_bytes());
  if (dtype == DType::kI8) {
    std::fill_n(const_cast<float*>(matrix.scales()), matrix.num_panels() * kPanel, 0.0f);
  }
  return matrix;
}

PackedMatrix::PackedMatrix(DType dtype,
                           std::int32_t n,
                           std::int32_t k,
                           std::span<const float> weights) {
  MOIETY_CHECK(weights.size() == static_cast<std::size_t>(n) * static_cast<std::size_t>(k),
               "the weights do not fill [n, k]");
  *this = unfilled(dtype, n, k);
  pack_rows(DType::kF32, reinterpret_cast<const std::byte*>(weights.data()), 0, n);
}

std::size_t PackedMatrix::panel_bytes() const { return packed_panel_bytes(dtype_, k_); }

const float* PackedMatrix::scales() const {
  if (dtype_ != DType::kI8) return nullptr;
  return reinterpret_cast<const float*>(data_.get() + scales_offset());
}

std::size_t PackedMatrix::scales_offset() const {
  return (num_panels() * panel_bytes() + kAlignment - 1) / kAlignment * kAlignment;
}

void PackedMatrix::pack_rows(DType source,
                             const std::byte* rows,
                             std::int32_t first,
                             std::int32_t count) {
  MOIETY_CHECK(source == DType::kF32 || source == DType::kBF16 || source == DType::kF16,
               "weights are read as F32, BF16 or F16");
  MOIETY_CHECK(first >= 0 && count >= 0 && first + count <= n_ && first % kPanel == 0 &&
                   (count % kPanel == 0 || first + count == n_),
               "rows that do not fill panels");
  if (k_ == 0) return;
  const std::size_t row_bytes = static_cast<std::size_t>(k_) * dtype_bytes(source);
  const std::int32_t words = packed_words(dtype_, k_);
  std::vector<std::uint32_t> block(static_cast<std::size_t>(words) * kPanel);
  QuantiseFn* const quantise = widest(plain::quantise, avx2::quantise, avx512::quantise);
  std::vector<std::uint32_t> pairs;  // of a row that becomes I8
  if (dtype_ == DType::kI8) {
    pairs.resize(static_cast<std::size_t>(packed_words(DType::kBF16, k_)));
  }
  for (std::int32_t begin = first; begin < first + count; begin += kPanel) {
    const std::int32_t num_rows = std::min(kPanel, first + count - begin);
    std::byte* panel = data_.get() + static_cast<std::size_t>(begin / kPanel) * panel_bytes();
    for (std::int32_t r = 0; r < num_rows; ++r) {
      const std::byte* row = rows + static_cast<std::size_t>(begin - first + r) * row_bytes;
      std::uint32_t* target = &block[static_cast<std::size_t>(r) * words];
      if (dtype_ == DType::kF32) {
        read_floats(source, row, k_, reinterpret_cast<float*>(target));
      } else if (dtype_ == DType::kBF16) {
        read_pairs(source, row, k_, target);
      } else {
        read_pairs(source, row, k_, pairs.data());
        const_cast<float*>(scales())[begin + r] =
            quantise(reinterpret_cast<const bf16*>(pairs.data()), static_cast<std::size_t>(k_),
                     reinterpret_cast<std::uint8_t*>(target));
      }
    }
    interleave(block.data(), num_rows, words, reinterpret_cast<std::uint32_t*>(panel));
  }
}

double PackedMatrix::at(std::int32_t row_n, std::int32_t col_k) const {
  MOIETY_CHECK(row_n >= 0 && row_n < n_ && col_k >= 0 && col_k < k_, "outside the matrix");
  const std::size_t index = panel_index(dtype_, row_n % kPanel, col_k);
  const std::byte* panel = data_.get() + static_cast<std::size_t>(row_n / kPanel) * panel_bytes();
  switch (dtype_) {
    case DType::kBF16:
      return bf16_to_float(reinterpret_cast<const bf16*>(panel)[index]);
    case DType::kI8:
      return double{scales()[row_n]} * (std::to_integer<int>(panel[index]) - kI8Offset);
    default:
      return reinterpret_cast<const float*>(panel)[index];
  }
}

}  // namespace moiety::kernels
