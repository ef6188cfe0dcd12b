#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/dtype.h"
#include "kernels/fixed_point.h"
#include "kernels/variant.h"

namespace moiety::kernels {

enum class InputForm : std::uint8_t;

/// Rows [m, k] of GEMM inputs in the form that one variant reads beside weights of one type.
///   F32    floats
///   BF16   BF16 where dot products take it, otherwise floats rounded to BF16
///   I8     16-bit fixed point with a scale per row (fixed_point.h)
///
/// Memory is kept for the next use.
class InputRows {
 public:
  /// Makes room; the rows' values are undefined until they are set.
  void reset(Variant variant, DType weights, std::int32_t m, std::int32_t k);

  /// Rounds and stores a row of k floats. Different rows may be set at the same time.
  void set_row(std::int32_t row, const float* x);
  /// Columns [first, first + count) of a row, unless has_row_scales().
  void set(std::int32_t row, std::int32_t first, std::int32_t count, const float* x);
  /// A row of another one of the same form and k.
  void copy_row(std::int32_t row, const InputRows& from, std::int32_t from_row);

  std::int32_t m() const { return m_; }
  std::int32_t k() const { return k_; }
  Variant variant() const { return variant_; }
  DType weights() const { return weights_; }
  InputForm form() const { return form_; }
  /// Whether a row's elements depend on all of the row, so that it must be set as a whole.
  bool has_row_scales() const { return weights_ == DType::kI8; }
  /// Row `row`, 64-byte aligned; its elements are zero from k up to the next multiple of 64.
  const std::byte* row(std::int32_t row) const;
  /// Bytes from one row to the next.
  std::ptrdiff_t stride() const { return stride_; }
  /// Of row `row` on, where there are row scales; else null.
  const float* scales(std::int32_t row) const;
  const std::uint32_t* offsets(std::int32_t row) const;

 private:
  std::byte* at(std::int32_t row, std::int32_t column);
  Variant variant_ = Variant::kReference;
  DType weights_ = DType::kF32;
  InputForm form_{};
  std::int32_t m_ = 0;
  std::int32_t k_ = 0;
  std::ptrdiff_t element_ = 0;  // bytes
  std::ptrdiff_t stride_ = 0;
  std::ptrdiff_t used_ = 0;  // bytes of a row that are read
  // Room for 15 rows more than m: tiles of 16 may start at any row.
  std::vector<std::byte> data_;
  std::size_t offset_ = 0;  // of row 0: aligns it to 64 bytes
  std::vector<float> scales_;
  std::vector<std::uint32_t> offsets_;
};

}  // namespace moiety::kernels
