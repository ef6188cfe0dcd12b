#pragma once

#include <cstdint>
#include <span>

#include "common/thread_pool.h"
#include "kernels/input_rows.h"
#include "kernels/packed_matrix.h"
#include "kernels/variant.h"

namespace moiety::kernels {

/// One product of linear().
struct LinearJob {
  const PackedMatrix* w;  ///< [n, k]
  float* y;               ///< [m, n]; must not alias the inputs
};

/// y = x w^T for one or several matrices that read the same rows, all in one parallel loop.
///
///   x  [m, k]  made for this variant and the matrices' type, which all have
///
/// Each output is one chain of additions over k = 0, 1, ... in fp32 (reference: double), or with I8
/// an exact integer, whatever m is: a row's bits do not depend on the other rows. Work is split
/// over panels (and rows) in `pool`.
void linear(const InputRows& x, std::span<const LinearJob> jobs, ThreadPool& pool);

/// The same for rows [m, k] of floats, contiguous, which InputRows rounds.
void linear(Variant variant,
            const PackedMatrix& w,
            const float* x,
            std::int32_t m,
            float* y,
            ThreadPool& pool);

/// The same on the calling thread only, for use inside a parallel loop.
void linear_serial(
    Variant variant, const PackedMatrix& w, const float* x, std::int32_t m, float* y);

/// Columns [panel_begin * 16, min(panel_end * 16, n)) for rows [first, first + m) of x, on the
/// calling thread; y's first column is panel_begin * 16, rows are y_stride floats apart.
struct LinearPart {
  std::int32_t first_row = 0;
  std::int32_t num_rows = 0;
  std::int32_t panel_begin = 0;
  std::int32_t panel_end = 0;
  float* y = nullptr;
  std::ptrdiff_t y_stride = 0;
  const std::byte* next = nullptr;  ///< weights that this thread probably reads next: a hint
};
void linear_part(const PackedMatrix& w, const InputRows& x, const LinearPart& part);

}  // namespace moiety::kernels
