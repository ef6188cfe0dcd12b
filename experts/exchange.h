#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/dtype.h"
#include "common/result.h"

namespace moiety {

/// How a worker's results travel back.
enum class CombineMode : std::uint8_t {
  kPerWorker =
      0,  ///< one row per (token, worker): the weighted sum over its experts, in slot order
  kPerExpert = 1,  ///< one row per (token, expert): a cluster then equals embedded mode bit for bit
};

/// The (expert, weight) pairs of a batch of rows, all of one layer.
///   row_offsets [num_rows + 1]       exclusive prefix sums of pairs per row
///   experts, weights [num_pairs]     in top-k slot order within a row; experts by original id
struct PairList {
  std::vector<std::uint32_t> row_offsets;
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
  std::size_t num_rows() const { return row_offsets.empty() ? 0 : row_offsets.size() - 1; }
  std::size_t num_pairs() const { return experts.size(); }
};

/// Content of a dispatch message.
struct Dispatch {
  CombineMode combine = CombineMode::kPerWorker;
  std::int32_t hidden_size = 0;
  PairList pairs;
  std::vector<float> rows;  ///< [num_rows, hidden_size]; travel as BF16 when `dtype` is BF16
                            ///< (exact: they hold BF16 values)
  DType dtype = DType::kBF16;
};

std::vector<std::byte> encode_dispatch(const Dispatch& dispatch);
/// kDataLoss names the field that does not fit the payload. Reads outside bytes: checks every
/// count.
Result<Dispatch> decode_dispatch(std::span<const std::byte> payload);

/// Replies are plain fp32 rows: [num_rows, hidden] or [num_pairs, hidden].
std::vector<std::byte> encode_rows(std::span<const float> rows);
/// kDataLoss unless the payload is exactly `count` floats.
Result<void> decode_rows(std::span<const std::byte> payload, std::span<float> rows);

}  // namespace moiety
