#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/implementations.h"

/// Where an element lies in one KV head's part of one block (kBlockTokens * head_dim elements). All
/// variants share it. The unit that is read together is a pair: of head dimensions for k, of tokens
/// for v. In BF16 the two share 32 bits, which are two floats after a shift and a mask, and the
/// form that BF16 dot products take. An odd head_dim's last row of k has no partner and stands
/// alone.
///
///   k  F32   [head_dim, kBlockTokens]
///      BF16  [head_dim / 2, kBlockTokens, 2], then [kBlockTokens] if head_dim is odd
///   v  F32   [kBlockTokens, head_dim]
///      BF16  [kBlockTokens / 2, head_dim, 2]
///
/// Not for files that are compiled for an instruction set: these are ordinary inline functions.
namespace moiety::kernels {

inline std::ptrdiff_t key_index(bool is_bf16,
                                std::int32_t head_dim,
                                std::int32_t token,
                                std::int32_t d) {
  const std::ptrdiff_t row = std::ptrdiff_t{d} * kBlockTokens;
  if (!is_bf16 || (d % 2 == 0 && d + 1 == head_dim)) return row + token;
  return row - d % 2 * kBlockTokens + 2 * token + d % 2;
}

inline std::ptrdiff_t value_index(bool is_bf16,
                                  std::int32_t head_dim,
                                  std::int32_t token,
                                  std::int32_t d) {
  if (!is_bf16) return std::ptrdiff_t{token} * head_dim + d;
  return std::ptrdiff_t{token / 2} * 2 * head_dim + 2 * d + token % 2;
}

}  // namespace moiety::kernels
