#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "common/result.h"

namespace moiety {

/// Element types of weights and activations that we store.
enum class DType : std::uint8_t { kF32, kBF16, kF16, kI64, kI32 };

/// Bytes of one element.
std::size_t dtype_bytes(DType dtype);

/// The safetensors spelling: "F32", "BF16", "F16", "I64", "I32".
std::string_view dtype_name(DType dtype);

/// Parses the safetensors spelling; kInvalidArgument for any other.
Result<DType> parse_dtype(std::string_view name);

/// A bfloat16 number: the upper half of an IEEE float.
using bf16 = std::uint16_t;

inline float bf16_to_float(bf16 value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16);
}

/// Rounds to nearest, ties to even; a NaN stays a (quiet) NaN.
inline bf16 float_to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<bf16>((bits >> 16) | 0x40u);
  return static_cast<bf16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/// Converts an IEEE half (as its bits) exactly.
float f16_to_float(std::uint16_t half);

}  // namespace moiety
