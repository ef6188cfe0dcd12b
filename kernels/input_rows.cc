#include "kernels/input_rows.h"

#include <algorithm>
#include <cstring>

#include "common/check.h"
#include "kernels/elementwise.h"
#include "kernels/implementations.h"

namespace moiety::kernels {
namespace {

constexpr std::int32_t kTileRows = 16;
constexpr std::ptrdiff_t kLine = 64;

InputForm form_of(Variant variant, DType weights) {
  const bool has_dot_products = variant == Variant::kAvx512Bf16 || variant == Variant::kAmx;
  switch (weights) {
    case DType::kBF16:
      return has_dot_products ? InputForm::kHalves : InputForm::kFloats;
    case DType::kI8:
      return has_dot_products ? InputForm::kDigits : InputForm::kFixedPoint;
    default:
      return InputForm::kFloats;
  }
}

std::int32_t blocks_of(std::int32_t k) { return k / kInputPadding + (k % kInputPadding != 0); }

}  // namespace

void InputRows::reset(Variant variant, DType weights, std::int32_t m, std::int32_t k) {
  MOIETY_CHECK(m >= 0 && k >= 0, "rows have no negative size");
  variant_ = variant;
  weights_ = weights;
  form_ = form_of(variant, weights);
  m_ = m;
  k_ = k;
  element_ = form_ == InputForm::kFloats ? sizeof(float) : sizeof(std::int16_t);
  used_ = std::ptrdiff_t{blocks_of(k)} * kInputPadding * element_;
  // An odd number of cache lines: rows side by side would otherwise share few of the cache's sets.
  stride_ = (used_ / kLine | 1) * kLine;
  // A part of the rows may start anywhere, and is read in whole tiles from there.
  const auto rows = static_cast<std::size_t>(m + kTileRows - 1);
  const std::size_t bytes = rows * static_cast<std::size_t>(stride_);
  if (data_.size() < bytes + kLine) data_.resize(bytes + kLine);
  offset_ = (kLine - reinterpret_cast<std::uintptr_t>(data_.data()) % kLine) % kLine;
  if (has_row_scales()) {
    scales_.resize(static_cast<std::size_t>(m));
    offsets_.resize(static_cast<std::size_t>(m));
    return;  // rows are padded when they are set
  }
  for (std::int32_t row = 0; row < m; ++row) {
    std::memset(at(row, k), 0, static_cast<std::size_t>(used_ - k * element_));
  }
}

std::byte* InputRows::at(std::int32_t row, std::int32_t column) {
  return data_.data() + offset_ + row * stride_ + column * element_;
}

const std::byte* InputRows::row(std::int32_t row) const {
  return data_.data() + offset_ + row * stride_;
}

const float* InputRows::scales(std::int32_t row) const {
  return has_row_scales() ? scales_.data() + row : nullptr;
}

const std::uint32_t* InputRows::offsets(std::int32_t row) const {
  return has_row_scales() ? offsets_.data() + row : nullptr;
}

void InputRows::set_row(std::int32_t row, const float* x) {
  if (!has_row_scales()) return set(row, 0, k_, x);
  MOIETY_CHECK(row >= 0 && row < m_, "outside the rows");
  auto* q = reinterpret_cast<std::int16_t*>(at(row, 0));
  const FixedPointRow made = to_fixed_point({x, static_cast<std::size_t>(k_)}, q);
  std::memset(q + k_, 0, static_cast<std::size_t>(used_ - k_ * element_));
  if (form_ == InputForm::kDigits) split_digits(q, blocks_of(k_));
  scales_[static_cast<std::size_t>(row)] = made.scale;
  offsets_[static_cast<std::size_t>(row)] = made.offset;
}

void InputRows::set(std::int32_t row, std::int32_t first, std::int32_t count, const float* x) {
  MOIETY_CHECK(row >= 0 && row < m_ && first >= 0 && count >= 0 && first + count <= k_,
               "outside the rows");
  MOIETY_CHECK(!has_row_scales(), "rows with scales are set as a whole");
  const auto size = static_cast<std::size_t>(count);
  if (form_ == InputForm::kHalves) {
    avx512::to_bf16(x, size, reinterpret_cast<bf16*>(at(row, first)));
    return;
  }
  auto* target = reinterpret_cast<float*>(at(row, first));
  std::copy_n(x, size, target);  // not memcpy: x may be null where there are no columns
  if (weights_ != DType::kF32) round_inputs(DType::kBF16, {target, size});
}

void InputRows::copy_row(std::int32_t row, const InputRows& from, std::int32_t from_row) {
  MOIETY_CHECK(row >= 0 && row < m_ && from_row >= 0 && from_row < from.m_ && k_ == from.k_ &&
                   form_ == from.form_,
               "rows of different forms");
  std::memcpy(at(row, 0), from.row(from_row), static_cast<std::size_t>(used_));
  if (has_row_scales()) {
    scales_[static_cast<std::size_t>(row)] = from.scales_[static_cast<std::size_t>(from_row)];
    offsets_[static_cast<std::size_t>(row)] = from.offsets_[static_cast<std::size_t>(from_row)];
  }
}

}  // namespace moiety::kernels
