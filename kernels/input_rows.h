#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/dtype.h"
#include "kernels/variant.h"

namespace moiety::kernels {

/// Rows [m, k] of GEMM inputs in the form that one variant reads beside weights of one type: BF16
/// where its dot products take them, floats otherwise. Beside BF16 and I8 weights values are
/// rounded to BF16 in either form. Memory is kept for the next use.
class InputRows {
 public:
  /// Makes room; the rows' values are undefined until they are set.
  void reset(Variant variant, DType weights, std::int32_t m, std::int32_t k);

  /// Rounds and stores a row of k floats. Different rows may be set at the same time.
  void set_row(std::int32_t row, const float* x) { set(row, 0, k_, x); }
  /// Columns [first, first + count) of a row.
  void set(std::int32_t row, std::int32_t first, std::int32_t count, const float* x);
  /// A row of another one of the same form and k.
  void copy_row(std::int32_t row, const InputRows& from, std::int32_t from_row);

  std::int32_t m() const { return m_; }
  std::int32_t k() const { return k_; }
  Variant variant() const { return variant_; }
  DType weights() const { return weights_; }
  /// Elements from one row to the next. A row's elements are zero from k up to the next multiple
  /// of 32.
  std::ptrdiff_t stride() const { return stride_; }
  /// Row `row` as floats or BF16; null in the other form.
  const float* floats(std::int32_t row) const;
  const bf16* halves(std::int32_t row) const;

 private:
  std::byte* at(std::int32_t row, std::int32_t column) const;
  Variant variant_ = Variant::kReference;
  DType weights_ = DType::kF32;
  bool is_bf16_ = false;
  std::int32_t m_ = 0;
  std::int32_t k_ = 0;
  std::ptrdiff_t stride_ = 0;
  std::ptrdiff_t used_ = 0;  // k rounded up to 32
  // Room for 15 rows more than m: tiles of 16 may start at any row.
  mutable std::vector<std::byte> data_;
  std::size_t offset_ = 0;  // of row 0: aligns it to 64 bytes
};

}  // namespace moiety::kernels
