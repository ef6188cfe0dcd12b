#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "common/result.h"

namespace moiety {

/// Element types of weights and activations that we store. I8 is a packed expert weight only
/// (kernels/packed_matrix.h); checkpoints are not read as I8.
enum class DType : std::uint8_t { kF32, kBF16, kF16, kI64, kI32, kI8 };

/// Bytes of one element.
std::size_t dtype_bytes(DType dtype);

/// The safetensors spelling: "F32", "BF16", "F16", "I64", "I32", "I8".
std::string_view dtype_name(DType dtype);

/// Parses the safetensors spelling of a type that checkpoints are read as; kInvalidArgument for any
/// other, I8 included.
Result<DType> parse_dtype(std::string_view name);

/// What people type after --dtype and --expert-dtype: "bf16", "f32", "int8".
std::string_view dtype_flag(DType dtype);
/// Of a flag's value; kInvalidArgument for any other. `experts`: int8 is one of them.
Result<DType> parse_dtype_flag(std::string_view name, bool experts);
/// The type of routed experts beside dense weights of `dtype`: `experts` as typed, empty = the
/// same. kInvalidArgument for a pair whose rows differ, which travel to workers: bf16 goes with
/// bf16 and int8, f32 with f32.
Result<DType> expert_dtype_for(DType dtype, std::string_view experts);

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
