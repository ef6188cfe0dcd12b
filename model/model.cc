#include "model/model.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"
#include "kernels/elementwise.h"
#include "kernels/gate.h"
#include "kernels/linear.h"
#include "model/weights.h"

namespace moiety {

struct Model::State {
  Architecture architecture;
  DType dtype;
  kernels::Variant variant;
  ThreadPool* pool;
  DenseWeights weights;
};

namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// Everything that one forward pass keeps between layers.
struct Pass {
  const Architecture& arch;
  const DenseWeights& weights;
  DType dtype;
  kernels::Variant variant;
  ThreadPool& pool;
  KvCache& kv;
  MoeBackend& experts;
  const StepOptions& options;

  std::size_t rows = 0;
  std::vector<kernels::AttentionRow> attention_rows{};
  std::vector<std::int32_t> tokens{};
  std::vector<const GateMask*> masks{};       // per row
  std::vector<float> rope_cos{}, rope_sin{};  // [rows, head_dim / 2]
  std::vector<float> x{};                     // residual stream [rows, hidden]
  std::vector<float> h{};                     // normed [rows, hidden]
  StepResult result{};

  void lay_out(std::span<const SequenceChunk> chunks);
  void embed();
  void norm_rows(const std::vector<float>& weight);
  void attention_block(std::int32_t index);
  void moe_block(std::int32_t index);
  void select(std::int32_t index,
              std::span<const float> gate_logits,
              std::span<float> topk_weights);
  void shared_experts(const LayerWeights& layer, std::span<float> y);
  void head(std::span<const SequenceChunk> chunks);
};

void Pass::lay_out(std::span<const SequenceChunk> chunks) {
  for (const SequenceChunk& chunk : chunks) {
    for (std::size_t i = 0; i < chunk.tokens.size(); ++i) {
      const std::int32_t position = chunk.start + static_cast<std::int32_t>(i);
      attention_rows.push_back({chunk.block_table, position});
      tokens.push_back(chunk.tokens[i]);
      masks.push_back(chunk.mask);
    }
  }
  rows = tokens.size();
  const std::size_t half = size(arch.head_dim / 2);
  rope_cos.resize(rows * half);
  rope_sin.resize(rows * half);
  pool.parallel_for(rows, [&](std::size_t row, std::size_t) {
    kernels::rope_table(arch.rope.theta, arch.head_dim, attention_rows[row].position,
                        &rope_cos[row * half], &rope_sin[row * half]);
  });
  result.masked_mass.assign(rows, 0.0f);
  result.failed.assign(rows, 0);
  result.topk_ids.resize(size(arch.num_layers()));
  result.gate_logits.resize(size(arch.num_layers()));
}

void Pass::embed() {
  const std::size_t hidden = size(arch.hidden_size);
  x.resize(rows * hidden);
  h.resize(rows * hidden);
  for (std::size_t row = 0; row < rows; ++row) {
    MOIETY_CHECK(tokens[row] >= 0 && tokens[row] < arch.vocab_size,
                 "token id outside the vocabulary");
    std::copy_n(&weights.embedding[size(tokens[row]) * hidden], hidden, &x[row * hidden]);
  }
}

void Pass::norm_rows(const std::vector<float>& weight) {
  const std::size_t hidden = size(arch.hidden_size);
  for (std::size_t row = 0; row < rows; ++row) {
    kernels::rms_norm(variant, &x[row * hidden], weight.data(), arch.rms_norm_eps, arch.hidden_size,
                      &h[row * hidden]);
  }
}

void Pass::attention_block(std::int32_t index) {
  const LayerWeights& layer = weights.layers[size(index)];
  const auto m = static_cast<std::int32_t>(rows);
  const std::size_t q_size = size(arch.q_size());
  const std::size_t kv_size = size(arch.kv_size());
  const std::size_t half = size(arch.head_dim / 2);
  norm_rows(layer.attention_norm);
  kernels::round_inputs(dtype, h);
  std::vector<float> q(rows * q_size), k(rows * kv_size), v(rows * kv_size);
  kernels::linear(variant, layer.q, h.data(), m, q.data(), pool);
  kernels::linear(variant, layer.k, h.data(), m, k.data(), pool);
  kernels::linear(variant, layer.v, h.data(), m, v.data(), pool);
  const kernels::KvLayer cache = kv.layer(index);
  pool.parallel_for(rows, [&](std::size_t row, std::size_t) {
    float* qr = &q[row * q_size];
    float* kr = &k[row * kv_size];
    float* vr = &v[row * kv_size];
    if (arch.qk_norm == QkNorm::kWholeProjection) {
      kernels::rms_norm(variant, qr, layer.q_norm.data(), arch.rms_norm_eps, arch.q_size(), qr);
      kernels::rms_norm(variant, kr, layer.k_norm.data(), arch.rms_norm_eps, arch.kv_size(), kr);
    }
    if (arch.clip_qkv > 0) {
      kernels::clip({qr, q_size}, arch.clip_qkv);
      kernels::clip({kr, kv_size}, arch.clip_qkv);
      kernels::clip({vr, kv_size}, arch.clip_qkv);
    }
    const float* cos = &rope_cos[row * half];
    const float* sin = &rope_sin[row * half];
    kernels::rope(qr, arch.num_heads, arch.head_dim, cos, sin);
    kernels::rope(kr, arch.num_kv_heads, arch.head_dim, cos, sin);
    kernels::round_inputs(dtype, {qr, q_size});
    kernels::store_kv(cache, attention_rows[row].block_table, attention_rows[row].position, kr, vr);
  });
  std::vector<float> out(rows * q_size);
  kernels::attention(variant, cache, attention_rows, arch.num_heads, arch.attention_scale, q.data(),
                     out.data(), pool);
  kernels::round_inputs(dtype, out);
  std::vector<float> projected(x.size());
  kernels::linear(variant, layer.o, out.data(), m, projected.data(), pool);
  kernels::add(x, projected.data());
}

void Pass::select(std::int32_t index,
                  std::span<const float> gate_logits,
                  std::span<float> topk_weights) {
  const MoeDescription& moe = arch.layers[size(index)].moe;
  const std::size_t top_k = size(moe.top_k);
  std::vector<std::int32_t>& ids = result.topk_ids[size(index)];
  ids.resize(rows * top_k);
  const float share = 1.0f / static_cast<float>(arch.num_layers());
  for (std::size_t row = 0; row < rows; ++row) {
    const std::span<const float> logits =
        gate_logits.subspan(row * size(moe.gate_rows), size(moe.num_routed));
    std::span<const std::uint8_t> kept;
    if (masks[row] != nullptr) kept = masks[row]->kept[size(index)];
    const std::span<std::int32_t> row_ids(&ids[row * top_k], top_k);
    const std::span<float> row_weights = topk_weights.subspan(row * top_k, top_k);
    result.masked_mass[row] +=
        share * kernels::select_experts(variant, logits, kept, moe.norm_topk, row_ids, row_weights);
    if (options.replay_gate != nullptr) {
      const std::vector<float>& replay = (*options.replay_gate)[size(index)];
      std::vector<float> unused(top_k);
      kernels::select_experts(
          variant, std::span(replay).subspan(row * size(moe.gate_rows), size(moe.num_routed)), kept,
          moe.norm_topk, row_ids, unused);
      kernels::weigh_experts(variant, logits, kept, moe.norm_topk, row_ids, row_weights);
    }
    if (result.failed[row] != 0) std::fill(row_ids.begin(), row_ids.end(), -1);
  }
}

void Pass::shared_experts(const LayerWeights& layer, std::span<float> y) {
  const std::size_t hidden = size(arch.hidden_size);
  std::vector<std::vector<float>> scratch(pool.num_threads());
  std::vector<float> out(x.size());
  for (const kernels::ExpertWeights& expert : layer.shared) {
    // Rows in chunks: a chunk's bits do not depend on its size.
    const std::size_t chunk = std::max<std::size_t>(
        1, std::min<std::size_t>(32, (rows + pool.num_threads() - 1) / pool.num_threads()));
    pool.parallel_for((rows + chunk - 1) / chunk, [&](std::size_t i, std::size_t thread) {
      const std::size_t first = i * chunk;
      const auto m = static_cast<std::int32_t>(std::min(chunk, rows - first));
      scratch[thread].resize(
          std::max(scratch[thread].size(), kernels::expert_scratch_floats(expert, m)));
      kernels::expert_ffn(variant, expert, &h[first * hidden], m, &out[first * hidden],
                          scratch[thread]);
    });
    kernels::add(y, out.data());
  }
}

void Pass::moe_block(std::int32_t index) {
  const LayerWeights& layer = weights.layers[size(index)];
  const MoeDescription& moe = arch.layers[size(index)].moe;
  norm_rows(layer.ffn_norm);
  std::vector<float> gate_logits(rows * size(moe.gate_rows));
  kernels::linear(variant, layer.gate, h.data(), static_cast<std::int32_t>(rows),
                  gate_logits.data(), pool);
  std::vector<float> topk_weights(rows * size(moe.top_k));
  select(index, gate_logits, topk_weights);
  kernels::round_inputs(dtype, h);
  experts.begin({index, static_cast<std::int32_t>(rows), arch.hidden_size, moe.top_k, h,
                 result.topk_ids[size(index)], topk_weights});
  if (!layer.shared.empty()) shared_experts(layer, x);
  std::vector<float> routed(x.size());
  experts.finish(routed, result.failed);
  kernels::add(x, routed.data());
  if (options.keep_gate_logits) result.gate_logits[size(index)] = std::move(gate_logits);
}

void Pass::head(std::span<const SequenceChunk> chunks) {
  const std::size_t hidden = size(arch.hidden_size);
  std::vector<float> last;  // normed rows that want logits
  const auto take = [&](std::size_t row) {
    last.resize(last.size() + hidden);
    kernels::rms_norm(variant, &x[row * hidden], weights.final_norm.data(), arch.rms_norm_eps,
                      arch.hidden_size, &last[last.size() - hidden]);
  };
  std::size_t first = 0;
  for (const SequenceChunk& chunk : chunks) {
    if (chunk.logits == SequenceChunk::Logits::kAll) {
      for (std::size_t i = 0; i < chunk.tokens.size(); ++i) take(first + i);
    } else if (chunk.logits == SequenceChunk::Logits::kLast) {
      take(first + chunk.tokens.size() - 1);
    }
    first += chunk.tokens.size();
  }
  kernels::round_inputs(dtype, last);
  const std::size_t count = last.size() / hidden;
  result.logits.resize(count * size(arch.vocab_size));
  kernels::linear(variant, weights.head, last.data(), static_cast<std::int32_t>(count),
                  result.logits.data(), pool);
}

}  // namespace

std::unique_ptr<GateMask> make_gate_mask(const KeptExperts& kept,
                                         const Architecture& architecture) {
  auto mask = std::make_unique<GateMask>();
  bool any = false;
  for (std::size_t layer = 0; layer < architecture.layers.size(); ++layer) {
    const std::size_t num_routed = size(architecture.layers[layer].moe.num_routed);
    mask->kept.emplace_back();
    if (kept.full || kept.layers[layer].size() == num_routed) continue;
    mask->kept.back().assign(num_routed, 0);
    for (std::int32_t expert : kept.layers[layer]) mask->kept.back().at(size(expert)) = 1;
    any = true;
  }
  return any ? std::move(mask) : nullptr;
}

Model::Model(std::unique_ptr<State> state) : state_(std::move(state)) {}
Model::~Model() = default;
const Architecture& Model::architecture() const { return state_->architecture; }
DType Model::dtype() const { return state_->dtype; }
kernels::Variant Model::variant() const { return state_->variant; }
ThreadPool& Model::pool() const { return *state_->pool; }
std::size_t Model::num_bytes() const { return state_->weights.num_bytes; }

Result<std::unique_ptr<Model>> Model::load(const Checkpoint& checkpoint,
                                           DType dtype,
                                           kernels::Variant variant,
                                           ThreadPool& pool) {
  MOIETY_ASSIGN(DenseWeights weights, load_dense_weights(checkpoint, dtype));
  return std::unique_ptr<Model>(new Model(std::make_unique<State>(
      State{checkpoint.architecture(), dtype, variant, &pool, std::move(weights)})));
}

StepResult Model::forward(std::span<const SequenceChunk> chunks,
                          KvCache& kv,
                          MoeBackend& experts,
                          const StepOptions& options) const {
  Pass pass{state_->architecture,
            state_->weights,
            state_->dtype,
            state_->variant,
            *state_->pool,
            kv,
            experts,
            options};
  pass.lay_out(chunks);
  pass.embed();
  for (std::int32_t layer = 0; layer < state_->architecture.num_layers(); ++layer) {
    pass.attention_block(layer);
    pass.moe_block(layer);
  }
  pass.head(chunks);
  return std::move(pass.result);
}

}  // namespace moiety
