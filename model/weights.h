#pragma once

#include <vector>

#include "checkpoint/checkpoint.h"
#include "common/thread_pool.h"
#include "kernels/expert_ffn.h"
#include "kernels/packed_matrix.h"
#include "model/embedding.h"

namespace moiety {

/// Packed weights of one layer, routed experts left out.
struct LayerWeights {
  std::vector<float> attention_norm;  // [hidden]
  std::vector<float> ffn_norm;        // [hidden]
  std::vector<float> q_norm;          // [q_size], [head_dim] or empty
  std::vector<float> k_norm;          // [kv_size], [head_dim] or empty
  kernels::PackedMatrix q, k, v, o;
  std::vector<float> q_bias, k_bias, v_bias, o_bias;  // as wide as the projection, or empty
  kernels::PackedMatrix gate;  // F32 [gate_rows, hidden], values of the serving dtype; or empty
  /// Feed-forward networks that run for every token: the shared experts of an MoE layer (weight 1
  /// each, or times the gate below), or all of a dense layer.
  std::vector<kernels::ExpertWeights> always_on;
  /// F32 [1, hidden] or empty: always_on's output is multiplied by sigmoid(always_on_gate . h).
  kernels::PackedMatrix always_on_gate;
};

struct DenseWeights {
  EmbeddingTable embedding;
  std::vector<LayerWeights> layers;
  std::vector<float> final_norm;  // [hidden]
  kernels::PackedMatrix head;     // [vocab, hidden]
  std::size_t num_bytes = 0;
};

/// Reads and packs everything but routed experts, in parallel in `pool`.
Result<DenseWeights> load_dense_weights(const Checkpoint& checkpoint,
                                        DType dtype,
                                        ThreadPool& pool);

}  // namespace moiety
