#pragma once

#include "common/thread_pool.h"
#include "kernels/input_rows.h"
#include "kernels/packed_matrix.h"

namespace moiety::bench {

/// Whether this CPU can run linear_two_chains().
bool can_run_two_chains();

/// What equal bits are measured against: y = x w^T [m, n] as kernels::linear computes it with
/// avx512_bf16, but each output is the sum of two chains of additions, over even and over odd pairs
/// of k, so that more products are under way at once. Its bits are not those of other row counts
/// that a kernel would compute in one chain.
///
///   w  BF16, n a multiple of 16
///   x  [m, k], m at most 6
void linear_two_chains(const kernels::PackedMatrix& w,
                       const kernels::InputRows& x,
                       float* y,
                       ThreadPool& pool);

}  // namespace moiety::bench
