#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "bench/machine_limits.h"
#include "checkpoint/architecture.h"
#include "common/dtype.h"

namespace moiety::bench {

/// What one phase of a step must move and multiply, counted from the algorithm.
struct Cost {
  double bytes = 0;       ///< read once from DRAM: weights, and keys and values
  double operations = 0;  ///< multiplications and additions
  Cost& operator+=(const Cost& other);
};

/// The roofline of one phase: the longer of reading and computing.
double limit_seconds(const Cost& cost, const MachineRates& rates);

/// The phases of a step that do not overlap: a step is as fast as their sum at best.
struct StepCost {
  Cost dense;      ///< embedding, q/k/v/o, norms, gate, dense and shared feed-forward networks
  Cost experts;    ///< routed experts
  Cost attention;  ///< keys and values, q k^T, weights times v
  Cost head;
  StepCost& operator+=(const StepCost& other);
};

double limit_seconds(const StepCost& cost, const MachineRates& rates);

/// The part of one sequence in a step.
struct ChunkSize {
  std::int32_t start = 0;   ///< tokens already in the KV cache
  std::int32_t tokens = 0;  ///< computed in this step
  std::int32_t logit_rows = 0;
};

/// Counts the steps of one model.
///
/// Every weight that a step needs counts once, in the type it is served in: the dense part whole
/// (the gate too, although its arithmetic is fp32), of the routed experts those that some token
/// selected. Keys and values count once per step and sequence, those in reach of the window. Rows
/// of activations are not counted: they are in the caches.
class CostModel {
 public:
  /// `expert_dtype`: F32, BF16 or I8 (one byte per weight and a scale per output channel).
  CostModel(const Architecture& architecture, DType dense_dtype, DType expert_dtype);

  /// `topk_ids`: StepResult's, per layer [rows, top_k]; empty for a dense layer; -1 selects
  /// nothing.
  StepCost step(std::span<const ChunkSize> chunks,
                std::span<const std::vector<std::int32_t>> topk_ids) const;

  /// Bytes of one routed expert of a layer as it is served.
  double expert_bytes(std::size_t layer) const;

 private:
  struct Layer {
    double dense_parameters = 0;
    double expert_parameters = 0;
    double expert_channels = 0;  // outputs of its three matrices
    std::int32_t num_routed = 0;
    std::int32_t window = 0;
  };
  std::vector<Layer> layers_;
  double hidden_ = 0, head_parameters_ = 0, q_size_ = 0, kv_size_ = 0;
  double dense_bytes_ = 0;  // of one weight
  DType expert_dtype_;
};

}  // namespace moiety::bench
