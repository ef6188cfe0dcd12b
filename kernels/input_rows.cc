#include "kernels/input_rows.h"

#include <algorithm>
#include <cstring>

#include "common/check.h"
#include "kernels/elementwise.h"
#include "kernels/implementations.h"

namespace moiety::kernels {
namespace {

constexpr std::ptrdiff_t kTileRows = 16;

bool takes_bf16(Variant variant, DType weights) {
  return weights != DType::kF32 && (variant == Variant::kAvx512Bf16 || variant == Variant::kAmx);
}

}  // namespace

void InputRows::reset(Variant variant, DType weights, std::int32_t m, std::int32_t k) {
  MOIETY_CHECK(m >= 0 && k >= 0, "rows have no negative size");
  variant_ = variant;
  weights_ = weights;
  is_bf16_ = takes_bf16(variant, weights);
  m_ = m;
  k_ = k;
  const std::ptrdiff_t blocks = (std::ptrdiff_t{k} + kInputPadding - 1) / kInputPadding;
  // An odd number of cache lines of BF16: rows side by side would otherwise share few of the
  // cache's sets.
  stride_ = (blocks | 1) * kInputPadding;
  used_ = blocks * kInputPadding;
  const std::size_t element = is_bf16_ ? sizeof(bf16) : sizeof(float);
  // A part of the rows may start anywhere, and is read in whole tiles from there.
  const auto rows = static_cast<std::size_t>(m + kTileRows - 1);
  const std::size_t bytes = rows * static_cast<std::size_t>(stride_) * element;
  if (data_.size() < bytes + 64) data_.resize(bytes + 64);
  offset_ = (64 - reinterpret_cast<std::uintptr_t>(data_.data()) % 64) % 64;
  if (used_ == k) return;
  for (std::int32_t row = 0; row < m; ++row) {
    std::memset(at(row, k), 0, static_cast<std::size_t>(used_ - k) * element);
  }
}

std::byte* InputRows::at(std::int32_t row, std::int32_t column) const {
  const std::ptrdiff_t element = is_bf16_ ? sizeof(bf16) : sizeof(float);
  return data_.data() + offset_ + (row * stride_ + column) * element;
}

void InputRows::set(std::int32_t row, std::int32_t first, std::int32_t count, const float* x) {
  MOIETY_CHECK(row >= 0 && row < m_ && first >= 0 && count >= 0 && first + count <= k_,
               "outside the rows");
  const auto size = static_cast<std::size_t>(count);
  if (is_bf16_) {
    avx512::to_bf16(x, size, reinterpret_cast<bf16*>(at(row, first)));
    return;
  }
  auto* target = reinterpret_cast<float*>(at(row, first));
  std::copy_n(x, size, target);  // not memcpy: x may be null where there are no columns
  if (weights_ != DType::kF32) round_inputs(DType::kBF16, {target, size});
}

void InputRows::copy_row(std::int32_t row, const InputRows& from, std::int32_t from_row) {
  MOIETY_CHECK(row >= 0 && row < m_ && from_row >= 0 && from_row < from.m_ && k_ == from.k_ &&
                   is_bf16_ == from.is_bf16_,
               "rows of different forms");
  std::memcpy(at(row, 0), from.at(from_row, 0),
              static_cast<std::size_t>(used_) * (is_bf16_ ? sizeof(bf16) : sizeof(float)));
}

const float* InputRows::floats(std::int32_t row) const {
  return is_bf16_ ? nullptr : reinterpret_cast<const float*>(at(row, 0));
}

const bf16* InputRows::halves(std::int32_t row) const {
  return is_bf16_ ? reinterpret_cast<const bf16*>(at(row, 0)) : nullptr;
}

}  // namespace moiety::kernels
