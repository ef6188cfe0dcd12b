#pragma once

#include <cstdint>
#include <span>

namespace moiety {

/// The routed part of one MoE layer of one step.
///   rows          [num_rows, hidden]   normed hidden states, already rounded to the GEMM input
///   type topk_ids      [num_rows, top_k]    original expert ids; -1 in every slot of a row that
///   has failed topk_weights  [num_rows, top_k]
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

/// Who computes routed experts: this process, or workers behind a lane. One layer at a time;
/// begin() and finish() alternate. Confined to the step loop's thread.
class MoeBackend {
 public:
  virtual ~MoeBackend() = default;

  /// Starts a layer. May return before the work is done, so that the caller computes the shared
  /// experts meanwhile.
  virtual void begin(const MoeLayerInput& input) = 0;

  /// Ends the layer: y [num_rows, hidden] is each row's weighted sum over its routed experts. Rows
  /// whose experts cannot be had are marked in `failed` [num_rows] (never unmarked) and hold zeros;
  /// the other rows are right.
  virtual void finish(std::span<float> y, std::span<std::uint8_t> failed) = 0;
};

}  // namespace moiety
