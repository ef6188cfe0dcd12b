#include "common/dtype.h"

#include <string>

namespace moiety {

std::size_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBF16:
    case DType::kF16:
      return 2;
    case DType::kI64:
      return 8;
    case DType::kI8:
      return 1;
  }
  return 0;
}

std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kBF16:
      return "BF16";
    case DType::kF16:
      return "F16";
    case DType::kI64:
      return "I64";
    case DType::kI32:
      return "I32";
    case DType::kI8:
      return "I8";
  }
  return "?";
}

Result<DType> parse_dtype(std::string_view name) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kI64, DType::kI32}) {
    if (dtype_name(dtype) == name) return dtype;
  }
  return fail(ErrorCode::kInvalidArgument,
              "element type '" + std::string(name) + "' is not one of F32, BF16, F16, I64, I32");
}

std::string_view dtype_flag(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return "bf16";
    case DType::kF32:
      return "f32";
    case DType::kI8:
      return "int8";
    default:
      return "?";
  }
}

Result<DType> parse_dtype_flag(std::string_view name, bool experts) {
  if (name == "bf16") return DType::kBF16;
  if (name == "f32") return DType::kF32;
  if (name == "int8" && experts) return DType::kI8;
  std::string message = "element type '";
  message.append(name).append("' is not one of bf16, f32");
  if (experts) message += ", int8";
  return fail(ErrorCode::kInvalidArgument, std::move(message));
}

Result<DType> expert_dtype_for(DType dtype, std::string_view experts) {
  if (experts.empty()) return dtype;
  MOIETY_ASSIGN(const DType of_experts, parse_dtype_flag(experts, true));
  if ((dtype == DType::kF32) == (of_experts == DType::kF32)) return of_experts;
  std::string message = "--expert-dtype ";
  message.append(experts).append(" does not go with --dtype ").append(dtype_flag(dtype));
  message += ": bf16 goes with bf16 and int8, f32 with f32";
  return fail(ErrorCode::kInvalidArgument, std::move(message));
}

float f16_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1fu;
  const std::uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // zero or subnormal
  return sign != 0 ? -magnitude : magnitude;
}

}  // namespace moiety
