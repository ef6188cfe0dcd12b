#pragma once

#include <optional>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "kernels/expert_ffn.h"
#include "kernels/packed_matrix.h"

namespace moiety {

/// Packed weights of one layer, routed experts left out.
struct LayerWeights {
  std::vector<float> attention_norm;  // [hidden]
  std::vector<float> ffn_norm;        // [hidden]
  std::vector<float> q_norm;          // [q_size] or empty
  std::vector<float> k_norm;          // [kv_size] or empty
  kernels::PackedMatrix q, k, v, o;
  kernels::PackedMatrix gate;  // F32 [gate_rows, hidden], values of the serving dtype
  std::vector<kernels::ExpertWeights> shared;  // weight 1 each
};

struct DenseWeights {
  std::vector<float> embedding;  // [vocab, hidden], values of the serving dtype
  std::vector<LayerWeights> layers;
  std::vector<float> final_norm;  // [hidden]
  kernels::PackedMatrix head;     // [vocab, hidden]
  std::size_t num_bytes = 0;
};

/// Reads a [n, k] tensor and packs it.
Result<kernels::PackedMatrix> load_matrix(const SafetensorsSet& tensors,
                                          const std::string& name,
                                          DType dtype);

/// Reads and packs everything but routed experts.
Result<DenseWeights> load_dense_weights(const Checkpoint& checkpoint, DType dtype);

}  // namespace moiety
