#pragma once

#include <cstdint>
#include <span>

namespace moiety::kernels {

/// How a row of inputs is held beside int8 weights: x[i] is about q[i] * scale.
struct FixedPointRow {
  float scale;  ///< a power of two; NaN where x has a NaN or an infinity, and q is zero then
  std::uint32_t
      offset;  ///< 128 * sum q, modulo 2^32: what storing weights as q + 128 adds to a sum
};

/// The largest |q|: 127 * 256 + 127, so that both its digits are int8 (split_digits).
inline constexpr std::int32_t kMostFixedPoint = 32639;

/// q[i] = x[i] / scale rounded to nearest even. The scale is the smallest power of two, from 2^-126
/// on, that keeps |x[i]| <= kMostFixedPoint * scale and 127 * sum |q| < 2^31: a product with a row
/// of int8 weights is then an exact 32-bit integer, in whatever order and with whatever wrapping it
/// is added up.
///
/// Unless a row is tiny (below 2^-112), an element's error is at most max |x| / 32639 (more only
/// where sum |x| > 518 max |x|), so that of the row, in the l2 norm, is at most max(sqrt(size) /
/// 32639, size / 2^24) of the row's own, up to 2^18 elements. Rounding to BF16 allows 2^-8. The
/// bits are the same on every CPU.
FixedPointRow to_fixed_point(std::span<const float> x, std::int16_t* q);

/// Splits `blocks` * 64 values q = 256 * upper + lower, both int8, in place: each 128 bytes become
/// 64 upper digits, then 64 lower ones.
void split_digits(std::int16_t* q, std::int32_t blocks);

}  // namespace moiety::kernels
