#include "experts/exchange.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

namespace moiety {
namespace {

/// Fixed start of a dispatch payload; then row_offsets [num_rows + 1] u32, experts [num_pairs] i32,
/// weights [num_pairs] f32, rows [num_rows, hidden_size] bf16 or f32. Little endian.
struct DispatchHead {
  std::uint8_t combine;
  std::uint8_t dtype;  // 0 = F32, 1 = BF16
  std::uint16_t reserved;
  std::uint32_t hidden_size;
  std::uint32_t num_rows;
  std::uint32_t num_pairs;
};
static_assert(sizeof(DispatchHead) == 16);

constexpr std::uint32_t kMaxHidden = 1u << 20;
constexpr std::size_t kChunk = 512;  // values converted at a time, in aligned memory

template <class T>
std::byte* put(std::byte* to, const T* from, std::size_t count) {
  if (count > 0) std::memcpy(to, from, count * sizeof(T));  // an empty vector has no address
  return to + count * sizeof(T);
}

template <class T>
const std::byte* get(const std::byte* from, T* to, std::size_t count) {
  if (count > 0) std::memcpy(to, from, count * sizeof(T));  // an empty vector has no address
  return from + count * sizeof(T);
}

}  // namespace

std::vector<std::byte> encode_dispatch(const Dispatch& dispatch) {
  const PairList& pairs = dispatch.pairs;
  const bool is_bf16 = dispatch.dtype == DType::kBF16;
  const DispatchHead head{static_cast<std::uint8_t>(dispatch.combine),
                          static_cast<std::uint8_t>(is_bf16 ? 1 : 0),
                          0,
                          static_cast<std::uint32_t>(dispatch.hidden_size),
                          static_cast<std::uint32_t>(pairs.num_rows()),
                          static_cast<std::uint32_t>(pairs.num_pairs())};
  std::vector<std::byte> payload(sizeof head + 4 * pairs.row_offsets.size() +
                                 8 * pairs.num_pairs() + dispatch.rows.size() * (is_bf16 ? 2 : 4));
  std::byte* to = put(payload.data(), &head, 1);
  to = put(to, pairs.row_offsets.data(), pairs.row_offsets.size());
  to = put(to, pairs.experts.data(), pairs.num_pairs());
  to = put(to, pairs.weights.data(), pairs.num_pairs());
  if (!is_bf16) {
    put(to, dispatch.rows.data(), dispatch.rows.size());
    return payload;
  }
  std::array<bf16, kChunk> halves;
  for (std::size_t begin = 0; begin < dispatch.rows.size(); begin += kChunk) {
    const std::size_t count = std::min(kChunk, dispatch.rows.size() - begin);
    const float* values = &dispatch.rows[begin];
    for (std::size_t i = 0; i < count; ++i) halves[i] = float_to_bf16(values[i]);
    to = put(to, halves.data(), count);
  }
  return payload;
}

Result<Dispatch> decode_dispatch(std::span<const std::byte> payload) {
  const auto bad = [](const std::string& what) {
    return fail(ErrorCode::kDataLoss, "dispatch message: " + what);
  };
  DispatchHead head{};
  if (payload.size() < sizeof head) return bad("shorter than its head");
  const std::byte* from = get(payload.data(), &head, 1);
  if (head.combine > 1) return bad("combine mode " + std::to_string(head.combine) + " is unknown");
  if (head.dtype > 1) return bad("element type " + std::to_string(head.dtype) + " is unknown");
  if (head.hidden_size == 0 || head.hidden_size > kMaxHidden)
    return bad("hidden_size out of range");
  const std::uint64_t row_values = std::uint64_t{head.num_rows} * head.hidden_size;
  const std::uint64_t expected = sizeof head + 4 * (std::uint64_t{head.num_rows} + 1) +
                                 8 * std::uint64_t{head.num_pairs} +
                                 row_values * (head.dtype == 1 ? 2 : 4);
  if (payload.size() != expected) {
    return bad("has " + std::to_string(payload.size()) + " bytes, its counts say " +
               std::to_string(expected));
  }
  Dispatch dispatch;
  dispatch.combine = static_cast<CombineMode>(head.combine);
  dispatch.dtype = head.dtype == 1 ? DType::kBF16 : DType::kF32;
  dispatch.hidden_size = static_cast<std::int32_t>(head.hidden_size);
  PairList& pairs = dispatch.pairs;
  pairs.row_offsets.resize(std::size_t{head.num_rows} + 1);
  pairs.experts.resize(head.num_pairs);
  pairs.weights.resize(head.num_pairs);
  from = get(from, pairs.row_offsets.data(), pairs.row_offsets.size());
  from = get(from, pairs.experts.data(), pairs.experts.size());
  from = get(from, pairs.weights.data(), pairs.weights.size());
  if (pairs.row_offsets.front() != 0 || pairs.row_offsets.back() != head.num_pairs) {
    return bad("row offsets do not span the pairs");
  }
  for (std::size_t row = 0; row < head.num_rows; ++row) {
    if (pairs.row_offsets[row] > pairs.row_offsets[row + 1]) return bad("row offsets go backwards");
  }
  dispatch.rows.resize(row_values);
  if (head.dtype == 0) {
    get(from, dispatch.rows.data(), dispatch.rows.size());
    return dispatch;
  }
  std::array<bf16, kChunk> halves;
  for (std::size_t begin = 0; begin < dispatch.rows.size(); begin += kChunk) {
    const std::size_t count = std::min(kChunk, dispatch.rows.size() - begin);
    from = get(from, halves.data(), count);
    float* values = &dispatch.rows[begin];
    for (std::size_t i = 0; i < count; ++i) values[i] = bf16_to_float(halves[i]);
  }
  return dispatch;
}

std::vector<std::byte> encode_rows(std::span<const float> rows) {
  std::vector<std::byte> payload(rows.size_bytes());
  put(payload.data(), rows.data(), rows.size());
  return payload;
}

Result<void> decode_rows(std::span<const std::byte> payload, std::span<float> rows) {
  if (payload.size() != rows.size_bytes()) {
    return fail(ErrorCode::kDataLoss, "reply has " + std::to_string(payload.size()) + " bytes, " +
                                          std::to_string(rows.size_bytes()) + " are expected");
  }
  get(payload.data(), rows.data(), rows.size());
  return {};
}

}  // namespace moiety
