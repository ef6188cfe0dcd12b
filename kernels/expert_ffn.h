#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/aligned.h"
#include "common/thread_pool.h"
#include "kernels/input_rows.h"
#include "kernels/packed_matrix.h"
#include "kernels/variant.h"

namespace moiety::kernels {

/// One expert, or any gated feed-forward network: down(silu(gate(x)) * up(x)).
struct ExpertWeights {
  PackedMatrix gate;  ///< [intermediate, hidden]
  PackedMatrix up;    ///< [intermediate, hidden]
  PackedMatrix down;  ///< [hidden, intermediate]
  std::size_t num_bytes() const { return gate.num_bytes() + up.num_bytes() + down.num_bytes(); }
};

/// The rows of one expert in a batch.
struct ExpertRows {
  const ExpertWeights* weights = nullptr;
  std::int32_t first = 0;  ///< rows [first, first + count) of the batch
  std::int32_t count = 0;
};

/// Runs many experts, each over rows of its own: the batch of one layer. Keeps its memory between
/// calls; one caller at a time.
class GroupedExperts {
 public:
  /// A batch of num_rows rows, fused per expert: gate and up, silu and product, down.
  ///
  ///   x        [num_rows, hidden]   made for the experts' weights; grouped by expert as `experts`
  ///            says, which covers every row once
  ///   y        [num_rows, hidden]   out; rows `y_stride` floats apart
  ///
  /// Inputs of the down projection are rounded to the weights' input type. A row's bits depend on
  /// its input and expert only. Work (expert, range of columns, range of rows) is handed
  /// out one by one: all first halves in expert order, then the second ones, each as soon as its
  /// expert's first half is done; there is no barrier between the two.
  void run(const InputRows& x,
           std::span<const ExpertRows> experts,
           float* y,
           std::ptrdiff_t y_stride,
           ThreadPool& pool);

 private:
  struct Task {
    std::int32_t expert;  // index into `experts`
    std::int32_t chunk;   // of rows, counted over all experts
    std::int32_t first_row, num_rows;
    std::int32_t panel_begin, panel_end;
  };
  InputRows hidden_;             // silu(gate) * up, rounded: inputs of down
  AlignedFloats hidden_floats_;  // before that, where only whole rows can be rounded
  std::vector<Task> first_half_, second_half_;
  std::vector<AlignedFloats> scratch_;  // per thread
};

}  // namespace moiety::kernels
