#pragma once

#include <cstdint>
#include <span>

#include "kernels/packed_matrix.h"
#include "kernels/variant.h"

namespace moiety::kernels {

/// One expert: down(silu(gate(x)) * up(x)).
struct ExpertWeights {
  PackedMatrix gate;  ///< [intermediate, hidden]
  PackedMatrix up;    ///< [intermediate, hidden]
  PackedMatrix down;  ///< [hidden, intermediate]
  std::size_t num_bytes() const { return gate.num_bytes() + up.num_bytes() + down.num_bytes(); }
};

/// Runs one expert over m rows on the calling thread.
///
///   x        [m, hidden]             float; BF16 values where the weights are BF16
///   y        [m, hidden]             out; must not alias x
///   scratch  at least expert_scratch_floats(weights, m)
///
/// Inputs of the down projection are rounded to the weights' type. Row bits do not depend on m.
void expert_ffn(Variant variant,
                const ExpertWeights& weights,
                const float* x,
                std::int32_t m,
                float* y,
                std::span<float> scratch);

std::size_t expert_scratch_floats(const ExpertWeights& weights, std::int32_t m);

}  // namespace moiety::kernels
