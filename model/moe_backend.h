#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace moiety {

/// What became of a row: 0 = it is right.
enum RowFailure : std::uint8_t {
  kRowFine = 0,
  kRowMissing = 1,  ///< an expert that it needs is out of reach now; later it may not be
  kRowRefused = 2,  ///< cannot be computed here, now or later
};

/// The routed part of one MoE layer of one step.
///
///   rows          [num_rows, hidden]  normed hidden states, already rounded to the GEMM input type
///   topk_ids      [num_rows, top_k]   original expert ids; -1 in every slot of a failed row
///   topk_weights  [num_rows, top_k]
///
/// The spans stay valid until finish() returns.
struct MoeLayerInput {
  std::int32_t layer = 0;
  std::int32_t num_rows = 0;
  std::int32_t hidden_size = 0;
  std::int32_t top_k = 0;
  std::span<const float> rows;
  std::span<const std::int32_t> topk_ids;
  std::span<const float> topk_weights;
};

/// Who computes routed experts: this process, or workers behind a lane. Up to kMaxInFlight layers
/// (of different rows) may be begun; finish() ends them in the order in which they began. Confined
/// to the step loop's thread.
class MoeBackend {
 public:
  static constexpr std::size_t kMaxInFlight = 2;

  virtual ~MoeBackend() = default;

  /// Starts a layer. May return before the work is done, so that the caller computes other things
  /// meanwhile.
  virtual void begin(const MoeLayerInput& input) = 0;

  /// Ends the oldest layer that was begun: y [num_rows, hidden] is each row's weighted sum over its
  /// routed experts. Rows that could not be computed get a RowFailure in `failed` [num_rows] (never
  /// unmarked) and hold zeros; the other rows are right.
  virtual void finish(std::span<float> y, std::span<std::uint8_t> failed) = 0;
};

}  // namespace moiety
