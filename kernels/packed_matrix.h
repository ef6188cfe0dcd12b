#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "common/dtype.h"

namespace moiety::kernels {

/// A weight matrix [n, k] (out, in) in the one layout that every variant reads.
///
/// Columns (n) come in panels of 16; the last panel is padded with zeros.
///   F32    panel, k, 16 floats
///   BF16   panel, k/2 (rounded up, padded with zeros), 16 pairs (k even, k odd): the VNNI order,
///   so that
///          AMX and AVX512-BF16 can read it too
/// 64-byte aligned. Immutable after packing; copies are not allowed, moves are cheap.
class PackedMatrix {
 public:
  static constexpr std::int32_t kPanel = 16;

  PackedMatrix() = default;
  /// Packs `weights` [n, k] row-major. BF16 rounds to nearest even.
  PackedMatrix(DType dtype, std::int32_t n, std::int32_t k, std::span<const float> weights);

  DType dtype() const { return dtype_; }
  std::int32_t n() const { return n_; }
  std::int32_t k() const { return k_; }
  std::int32_t num_panels() const { return (n_ + kPanel - 1) / kPanel; }
  std::size_t num_bytes() const { return num_bytes_; }
  /// First element of a panel.
  const float* panel_f32(std::int32_t panel) const;
  const bf16* panel_bf16(std::int32_t panel) const;
  /// One weight as float, for the oracle and tests.
  float at(std::int32_t row_n, std::int32_t col_k) const;

 private:
  struct Free {
    void operator()(std::byte* p) const;
  };
  DType dtype_ = DType::kF32;
  std::int32_t n_ = 0;
  std::int32_t k_ = 0;
  std::size_t num_bytes_ = 0;
  std::unique_ptr<std::byte[], Free> data_;
};

}  // namespace moiety::kernels
