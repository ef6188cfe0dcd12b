#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "common/placement.h"
#include "common/thread_pool.h"
#include "kernels/attention.h"
#include "kernels/variant.h"
#include "model/kv_cache.h"
#include "model/moe_backend.h"

namespace moiety {

/// Which routed experts a row may select: `kept[layer][expert]` is 1 or 0; an empty layer keeps
/// all.
struct GateMask {
  std::vector<std::vector<std::uint8_t>> kept;
};

/// The mask of a kept set; null when it keeps every routed expert of every layer.
std::unique_ptr<GateMask> make_gate_mask(const KeptExperts& kept, const Architecture& architecture);

/// One sequence's part of a step: `tokens` at positions start, start + 1, ...
struct SequenceChunk {
  enum class Logits : std::uint8_t { kNone, kLast, kAll };
  std::span<const std::int32_t> tokens;
  std::int32_t start = 0;
  std::span<const std::int32_t> block_table;  ///< covers start + tokens.size() positions
  const GateMask* mask = nullptr;             ///< null: every routed expert
  Logits logits = Logits::kLast;
};

/// What a caller wants besides logits.
struct StepOptions {
  bool keep_gate_logits = false;
  /// Per layer, raw gate logits [rows, gate_rows] whose *choice* of experts is used instead of our
  /// own (weights are ours); empty for a dense layer. Null: no replay.
  const std::vector<std::vector<float>>* replay_gate = nullptr;
  /// 2: the rows go in two halves, and one half's experts are asked for before the other half's
  /// answers are waited for. The bits are the same. 1 with replay_gate, or with a single row.
  std::int32_t micro_batches = 1;
};

/// Rows are the chunks' tokens, chunk after chunk.
struct StepResult {
  std::vector<float> logits;         ///< [logit rows, vocab], in row order
  std::vector<float> masked_mass;    ///< [rows]: mean over MoE layers
  std::vector<std::uint8_t> failed;  ///< [rows]: a RowFailure; then its logits mean nothing
  /// Per layer [rows, top_k]; empty for a dense layer.
  std::vector<std::vector<std::int32_t>> topk_ids;
  /// Per layer [rows, gate_rows], when asked for; empty for a dense layer.
  std::vector<std::vector<float>> gate_logits;
};
inline bool any_failed(const StepResult& result) {
  return std::any_of(result.failed.begin(), result.failed.end(),
                     [](std::uint8_t failure) { return failure != 0; });
}

/// The dense part of a model (everything but routed experts) and its forward pass. Immutable after
/// loading; forward() is called from one thread at a time and uses the pool for its loops.
///
/// Numerics: the weights are those of the checkpoint as if it had been saved in `dtype`. With BF16,
/// GEMM inputs and the KV cache are rounded to BF16 too; sums, the residual stream and all of the
/// gate's arithmetic are fp32. The bits of a row depend on its own sequence only (its tokens and
/// mask), not on the other rows, the chunking or the backend (as long as that returns the same
/// sums).
class Model {
 public:
  /// Reads and packs all but the routed experts.
  static Result<std::unique_ptr<Model>> load(const Checkpoint& checkpoint,
                                             DType dtype,
                                             kernels::Variant variant,
                                             ThreadPool& pool);
  ~Model();

  const Architecture& architecture() const;
  DType dtype() const;
  kernels::Variant variant() const;
  ThreadPool& pool() const;
  /// Bytes of the packed dense weights.
  std::size_t num_bytes() const;

  StepResult forward(std::span<const SequenceChunk> chunks,
                     KvCache& kv,
                     MoeBackend& experts,
                     const StepOptions& options = {}) const;

 private:
  struct State;
  explicit Model(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace moiety
