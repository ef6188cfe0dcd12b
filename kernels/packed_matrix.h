#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "common/dtype.h"

namespace moiety::kernels {

/// A weight matrix [n, k] (out, in) in the one layout that every variant reads.
///
/// Columns (n) come in panels of 16; the last panel is padded with zero bytes.
///   F32    panel, k, 16 floats
///   BF16   panel, k/2 (rounded up, padded with zeros), 16 pairs (k even, k odd): the VNNI order,
///          which AMX and AVX512-BF16 read too
///   I8     panel, k/4 (rounded up), 16 times four bytes of successive k, each q + 128, which is
///          what VPDPBUSD and TDPBSUD take: w[n, k] = scales[n] * q[n, k], q in [-127, 127],
///          scales[n] = max |w[n, :]| / 127 (symmetric, per output channel)
/// Data and scales are 64-byte aligned. Immutable after packing; copies are not allowed, moves are
/// cheap.
class PackedMatrix {
 public:
  static constexpr std::int32_t kPanel = 16;

  PackedMatrix() = default;
  /// Packs `weights` [n, k] row-major as F32, BF16 (rounded to nearest even) or I8.
  PackedMatrix(DType dtype, std::int32_t n, std::int32_t k, std::span<const float> weights);

  /// Makes room for [n, k], to be filled by pack_rows().
  static PackedMatrix unfilled(DType dtype, std::int32_t n, std::int32_t k);
  /// Packs rows [first, first + count) from `rows`, [count, k] row-major elements of `source` (F32,
  /// BF16 or F16; need not be aligned). `first` is a multiple of 16, and `count` too unless the
  /// rows end the matrix. Weights that become BF16 or I8 are rounded to BF16 first, so that an F32
  /// checkpoint gives what its BF16 copy gives. Calls for different rows may run at the same time.
  void pack_rows(DType source, const std::byte* rows, std::int32_t first, std::int32_t count);

  DType dtype() const { return dtype_; }
  std::int32_t n() const { return n_; }
  std::int32_t k() const { return k_; }
  std::int32_t num_panels() const { return (n_ + kPanel - 1) / kPanel; }
  /// Of weights and scales.
  std::size_t num_bytes() const { return num_panels() * (panel_bytes() + scale_bytes()); }
  /// From one panel to the next.
  std::size_t panel_bytes() const;
  /// Panel 0.
  const std::byte* data() const { return data_.get(); }
  const std::byte* panel(std::int32_t index) const {
    return data() + static_cast<std::size_t>(index) * panel_bytes();
  }
  /// I8: [num_panels * 16], zero where there is no column; else null.
  const float* scales() const;
  /// One weight, exactly, for the oracle and tests.
  double at(std::int32_t row_n, std::int32_t col_k) const;

 private:
  struct Free {
    void operator()(std::byte* p) const;
  };
  std::size_t scales_offset() const;
  std::size_t scale_bytes() const { return dtype_ == DType::kI8 ? kPanel * sizeof(float) : 0; }
  DType dtype_ = DType::kF32;
  std::int32_t n_ = 0;
  std::int32_t k_ = 0;
  std::unique_ptr<std::byte[], Free> data_;  // panels, then scales
};

}  // namespace moiety::kernels
