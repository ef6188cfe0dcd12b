#pragma once

#include <cstdint>
#include <span>

#include "common/dtype.h"
#include "kernels/variant.h"

namespace moiety::kernels {

/// Rounds GEMM inputs in place to what `dtype` can hold: nothing for F32, nearest even for BF16.
void round_inputs(DType dtype, std::span<float> x);

/// y = x / sqrt(mean(x^2) + eps) * weight, one row of `size` elements. y may alias x.
/// The sum of squares has one fixed order per variant (a function of `size` only).
void rms_norm(
    Variant variant, const float* x, const float* weight, float eps, std::int32_t size, float* y);

/// Rotary embedding in place, NeoX halves: for each head, (x[i], x[i + d/2]) is rotated by the
/// angle whose cosine and sine are cos[i] and sin[i].
///   x     [num_heads, head_dim]   one token's q or k
///   cos, sin  [head_dim / 2]      for this token's position (see rope_table)
void rope(
    float* x, std::int32_t num_heads, std::int32_t head_dim, const float* cos, const float* sin);

/// Fills cos and sin, each [frequencies.size()], for one position: factor * cos(position *
/// frequencies[i]) and the same of sin. The angle is an fp32 product, as models are trained with.
void rope_table(std::span<const float> frequencies,
                float factor,
                std::int64_t position,
                float* cos,
                float* sin);

/// Clamps to [-limit, limit].
void clip(std::span<float> x, float limit);

/// accumulator[i] += scale * x[i], the product rounded first
void add(std::span<float> accumulator, const float* x, float scale = 1);

}  // namespace moiety::kernels
