#pragma once

#include <cstdint>

#include "common/thread_pool.h"
#include "kernels/packed_matrix.h"
#include "kernels/variant.h"

namespace moiety::kernels {

/// y = x w^T.
///
///   x  [m, k]  float, rows contiguous. Where w is BF16 the caller has rounded x to BF16 values
///              (round_inputs); a GEMM unit with BF16 inputs then gives the same products.
///   w  [n, k]
///   y  [m, n]  out; must not alias x
///
/// Each output is one chain of additions over k = 0, 1, ... in fp32 (reference: double), whatever m
/// is: a row's bits do not depend on the other rows. Work is split over panels (and rows) in
/// `pool`.
void linear(Variant variant,
            const PackedMatrix& w,
            const float* x,
            std::int32_t m,
            float* y,
            ThreadPool& pool);

/// The same on the calling thread only, for use inside a parallel loop.
void linear_serial(
    Variant variant, const PackedMatrix& w, const float* x, std::int32_t m, float* y);

}  // namespace moiety::kernels
