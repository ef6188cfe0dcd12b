#include "model/model.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "common/aligned.h"
#include "common/check.h"
#include "kernels/elementwise.h"
#include "kernels/gate.h"
#include "kernels/linear.h"
#include "model/micro_batches.h"
#include "model/weights.h"

namespace moiety {

namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// What a pass needs room for; kept between steps, since fresh pages cost more than some of the
/// work that is done in them.
struct Workspace {
  /// Rotary tables, one of each for every entry of arch.ropes: [rows, head_dim / 2].
  std::vector<std::vector<float>> rope_cos, rope_sin;
  AlignedFloats x;                 // residual stream [rows, hidden]
  AlignedFloats h;                 // normed [rows, hidden]
  AlignedFloats q, k, v;           // [rows, q_size], [rows, kv_size]
  AlignedFloats attended;          // [rows, q_size]
  AlignedFloats out;               // what a block adds to the residual stream [rows, hidden]
  AlignedFloats gate_logits;       // [rows, gate_rows]
  AlignedFloats topk_weights;      // [rows, top_k]
  std::vector<float> shares;       // [rows]: by how much always_on counts
  kernels::InputRows inputs;       // h or attended, as the weights want it
  kernels::InputRows gate_inputs;  // h in fp32
  kernels::GroupedExperts always_on;
};

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
  Workspace& ws;

  std::size_t rows = 0;
  std::vector<kernels::AttentionRow> attention_rows{};
  std::vector<std::int32_t> tokens{};
  std::vector<const GateMask*> masks{};  // per row
  bool out_is_pending = false;           // ws.out is still to be added to the residual stream
  StepResult result{};

  void lay_out(std::span<const SequenceChunk> chunks);
  void fill_rope_tables();
  void embed();
  template <class Body>
  void for_rows(const Body& body);
  void norm_rows(const std::vector<float>& weight, bool keep_unrounded);
  void add_out(std::size_t row);
  void flush_out();
  void attention_block(std::int32_t index);
  void prepare_heads(const LayerWeights& layer, std::int32_t index, std::size_t row);
  void norm_heads(const std::vector<float>& weight, std::span<float> heads);
  void begin_experts(std::int32_t index);
  void finish_experts(std::int32_t index);
  void begin_layer(std::int32_t index);
  void finish_layer(std::int32_t index);
  void start(std::span<const SequenceChunk> chunks);
  void select(std::int32_t index, std::size_t row);
  void always_on_shares(const LayerWeights& layer);
  void always_on(const LayerWeights& layer);
  void head(std::span<const SequenceChunk> chunks);
};

/// body(row) for every row, on several threads when there are enough of them.
template <class Body>
void Pass::for_rows(const Body& body) {
  constexpr std::size_t kSerialRows = 4;
  if (rows < kSerialRows) {
    for (std::size_t row = 0; row < rows; ++row) body(row);
  } else {
    pool.parallel_for(rows, [&](std::size_t row, std::size_t) { body(row); });
  }
}

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
  fill_rope_tables();
  result.masked_mass.assign(rows, 0.0f);
  result.failed.assign(rows, 0);
  result.topk_ids.resize(size(arch.num_layers()));
  result.gate_logits.resize(size(arch.num_layers()));
}

void Pass::fill_rope_tables() {
  const std::size_t half = size(arch.head_dim / 2);
  ws.rope_cos.resize(arch.ropes.size());
  ws.rope_sin.resize(arch.ropes.size());
  for (std::size_t i = 0; i < arch.ropes.size(); ++i) {
    ws.rope_cos[i].resize(rows * half);
    ws.rope_sin[i].resize(rows * half);
  }
  for_rows([&](std::size_t row) {
    for (std::size_t i = 0; i < arch.ropes.size(); ++i) {
      kernels::rope_table(arch.ropes[i].frequencies, arch.ropes[i].attention_factor,
                          attention_rows[row].position, &ws.rope_cos[i][row * half],
                          &ws.rope_sin[i][row * half]);
    }
  });
}

void Pass::embed() {
  const std::size_t hidden = size(arch.hidden_size);
  ws.x.resize(rows * hidden);
  ws.h.resize(rows * hidden);
  ws.out.resize(rows * hidden);
  for (std::size_t row = 0; row < rows; ++row) {
    MOIETY_CHECK(tokens[row] >= 0 && tokens[row] < arch.vocab_size,
                 "token id outside the vocabulary");
    weights.embedding.read(tokens[row], arch.embedding_multiplier, &ws.x[row * hidden]);
  }
}

/// Adds what the last block computed for one row to the residual stream.
void Pass::add_out(std::size_t row) {
  const std::size_t hidden = size(arch.hidden_size);
  kernels::add({&ws.x[row * hidden], hidden}, &ws.out[row * hidden], arch.residual_multiplier);
}

void Pass::flush_out() {
  if (out_is_pending) for_rows([&](std::size_t row) { add_out(row); });
  out_is_pending = false;
}

/// The residual stream, normed: into ws.inputs rounded, and into ws.h and ws.gate_inputs as it is
/// when `keep_unrounded`.
void Pass::norm_rows(const std::vector<float>& weight, bool keep_unrounded) {
  const std::size_t hidden = size(arch.hidden_size);
  const auto m = static_cast<std::int32_t>(rows);
  ws.inputs.reset(variant, dtype, m, arch.hidden_size);
  if (keep_unrounded) ws.gate_inputs.reset(variant, DType::kF32, m, arch.hidden_size);
  for_rows([&](std::size_t row) {
    if (out_is_pending) add_out(row);
    float* h = &ws.h[row * hidden];
    kernels::rms_norm(variant, &ws.x[row * hidden], weight.data(), arch.rms_norm_eps,
                      arch.hidden_size, h);
    ws.inputs.set_row(static_cast<std::int32_t>(row), h);
    if (keep_unrounded) ws.gate_inputs.set_row(static_cast<std::int32_t>(row), h);
  });
  out_is_pending = false;
}

/// RMSNorm of one row's q or k, as the architecture has it.
void Pass::norm_heads(const std::vector<float>& weight, std::span<float> heads) {
  if (arch.qk_norm == QkNorm::kNone) return;
  const std::size_t width = arch.qk_norm == QkNorm::kPerHead ? size(arch.head_dim) : heads.size();
  for (std::size_t begin = 0; begin < heads.size(); begin += width) {
    kernels::rms_norm(variant, &heads[begin], weight.data(), arch.rms_norm_eps,
                      static_cast<std::int32_t>(width), &heads[begin]);
  }
}

/// From the projections of one row to what attention reads and the cache takes, in place.
void Pass::prepare_heads(const LayerWeights& layer, std::int32_t index, std::size_t row) {
  const std::span<float> qr(&ws.q[row * size(arch.q_size())], size(arch.q_size()));
  const std::span<float> kr(&ws.k[row * size(arch.kv_size())], size(arch.kv_size()));
  const std::span<float> vr(&ws.v[row * size(arch.kv_size())], size(arch.kv_size()));
  if (!layer.q_bias.empty()) {
    kernels::add(qr, layer.q_bias.data());
    kernels::add(kr, layer.k_bias.data());
    kernels::add(vr, layer.v_bias.data());
  }
  norm_heads(layer.q_norm, qr);
  norm_heads(layer.k_norm, kr);
  if (arch.clip_qkv > 0) {
    for (const std::span<float> values : {qr, kr, vr}) kernels::clip(values, arch.clip_qkv);
  }
  const std::size_t table = size(arch.layers[size(index)].rope);
  const float* cos = &ws.rope_cos[table][row * size(arch.head_dim / 2)];
  const float* sin = &ws.rope_sin[table][row * size(arch.head_dim / 2)];
  kernels::rope(qr.data(), arch.num_heads, arch.head_dim, cos, sin);
  kernels::rope(kr.data(), arch.num_kv_heads, arch.head_dim, cos, sin);
  kernels::round_inputs(dtype, qr);
}

void Pass::attention_block(std::int32_t index) {
  const LayerWeights& layer = weights.layers[size(index)];
  const auto m = static_cast<std::int32_t>(rows);
  norm_rows(layer.attention_norm, false);
  ws.q.resize(rows * size(arch.q_size()));
  ws.k.resize(rows * size(arch.kv_size()));
  ws.v.resize(rows * size(arch.kv_size()));
  const kernels::LinearJob projections[] = {
      {&layer.q, ws.q.data()}, {&layer.k, ws.k.data()}, {&layer.v, ws.v.data()}};
  kernels::linear(ws.inputs, projections, pool);
  for_rows([&](std::size_t row) { prepare_heads(layer, index, row); });
  kernels::store_kv(kv.layer(index), attention_rows, ws.k.data(), ws.v.data(), pool);
  ws.attended.resize(ws.q.size());
  kernels::attention(variant, kv.layer(index), attention_rows, arch.num_heads, arch.attention_scale,
                     arch.layers[size(index)].window, ws.q.data(), ws.attended.data(), pool);
  ws.inputs.reset(variant, dtype, m, arch.q_size());
  for_rows([&](std::size_t row) {
    ws.inputs.set_row(static_cast<std::int32_t>(row), &ws.attended[row * size(arch.q_size())]);
  });
  const kernels::LinearJob projection{&layer.o, ws.out.data()};
  kernels::linear(ws.inputs, {&projection, 1}, pool);
  if (!layer.o_bias.empty()) {
    const std::size_t hidden = size(arch.hidden_size);
    for_rows([&](std::size_t row) {
      kernels::add({&ws.out[row * hidden], hidden}, layer.o_bias.data());
    });
  }
  out_is_pending = true;
}

/// One row's choice of experts, from ws.gate_logits.
void Pass::select(std::int32_t index, std::size_t row) {
  const MoeDescription& moe = arch.layers[size(index)].moe;
  const kernels::GateRule rule{moe.norm_topk, moe.routed_scale};
  const std::size_t top_k = size(moe.top_k);
  const auto logits_of = [&](std::span<const float> all) {
    return all.subspan(row * size(moe.gate_rows), size(moe.num_routed));
  };
  const std::span<const float> logits = logits_of(ws.gate_logits);
  std::span<const std::uint8_t> kept;
  if (masks[row] != nullptr) kept = masks[row]->kept[size(index)];
  const std::span<std::int32_t> ids(&result.topk_ids[size(index)][row * top_k], top_k);
  const std::span<float> factors(&ws.topk_weights[row * top_k], top_k);
  const float share = 1.0f / static_cast<float>(arch.num_moe_layers());
  result.masked_mass[row] +=
      share * kernels::select_experts(variant, logits, kept, rule, ids, factors);
  if (options.replay_gate != nullptr) {
    std::vector<float> unused(top_k);
    kernels::select_experts(variant, logits_of((*options.replay_gate)[size(index)]), kept, rule,
                            ids, unused);
    kernels::weigh_experts(variant, logits, kept, rule, ids, factors);
  }
  if (result.failed[row] != 0) std::fill(ids.begin(), ids.end(), -1);
}

/// By how much each row's always_on output counts, where the layer has a gate for it: its sigmoid,
/// from unrounded h.
void Pass::always_on_shares(const LayerWeights& layer) {
  ws.shares.clear();
  if (layer.always_on_gate.n() == 0) return;
  ws.shares.resize(rows);
  const kernels::LinearJob gate{&layer.always_on_gate, ws.shares.data()};
  kernels::linear(ws.gate_inputs, {&gate, 1}, pool);
  for (float& share : ws.shares) {
    share = static_cast<float>(1.0 / (1.0 + std::exp(-double{share})));
  }
}

/// Adds the networks that run for every token to the residual stream, the last of them later.
void Pass::always_on(const LayerWeights& layer) {
  const std::size_t hidden = size(arch.hidden_size);
  for (const kernels::ExpertWeights& expert : layer.always_on) {
    flush_out();
    const kernels::ExpertRows all{&expert, 0, static_cast<std::int32_t>(rows)};
    ws.always_on.run(ws.inputs, {&all, 1}, ws.out.data(), static_cast<std::ptrdiff_t>(hidden),
                     pool);
    out_is_pending = true;
    for (std::size_t row = 0; row < ws.shares.size(); ++row) {
      for (std::size_t i = 0; i < hidden; ++i) ws.out[row * hidden + i] *= ws.shares[row];
    }
  }
}

/// Chooses experts and asks for them.
void Pass::begin_experts(std::int32_t index) {
  const LayerWeights& layer = weights.layers[size(index)];
  const MoeDescription& moe = arch.layers[size(index)].moe;
  ws.gate_logits.resize(rows * size(moe.gate_rows));
  const kernels::LinearJob gate{&layer.gate, ws.gate_logits.data()};
  kernels::linear(ws.gate_inputs, {&gate, 1}, pool);
  ws.topk_weights.resize(rows * size(moe.top_k));
  result.topk_ids[size(index)].resize(rows * size(moe.top_k));
  for_rows([&](std::size_t row) {
    select(index, row);
    kernels::round_inputs(dtype, {&ws.h[row * size(arch.hidden_size)], size(arch.hidden_size)});
  });
  experts.begin({index, static_cast<std::int32_t>(rows), arch.hidden_size, moe.top_k, ws.h,
                 result.topk_ids[size(index)], ws.topk_weights});
}

/// Computes what runs for every row while the experts are under way, and takes their results.
void Pass::finish_experts(std::int32_t index) {
  always_on(weights.layers[size(index)]);
  flush_out();
  experts.finish(ws.out, result.failed);
  out_is_pending = true;
  if (options.keep_gate_logits)
    result.gate_logits[size(index)].assign(ws.gate_logits.begin(), ws.gate_logits.end());
}

/// A layer up to where its experts are asked for.
void Pass::begin_layer(std::int32_t index) {
  attention_block(index);
  const LayerWeights& layer = weights.layers[size(index)];
  const bool is_dense = arch.layers[size(index)].is_dense();
  norm_rows(layer.ffn_norm, !is_dense);
  always_on_shares(layer);
  if (!is_dense) begin_experts(index);
}

void Pass::finish_layer(std::int32_t index) {
  if (arch.layers[size(index)].is_dense()) {
    always_on(weights.layers[size(index)]);
  } else {
    finish_experts(index);
  }
}

void Pass::start(std::span<const SequenceChunk> chunks) {
  lay_out(chunks);
  embed();
}

void Pass::head(std::span<const SequenceChunk> chunks) {
  const std::size_t hidden = size(arch.hidden_size);
  flush_out();
  std::vector<std::size_t> wanted;
  std::size_t first = 0;
  for (const SequenceChunk& chunk : chunks) {
    if (chunk.logits == SequenceChunk::Logits::kAll) {
      for (std::size_t i = 0; i < chunk.tokens.size(); ++i) wanted.push_back(first + i);
    } else if (chunk.logits == SequenceChunk::Logits::kLast) {
      wanted.push_back(first + chunk.tokens.size() - 1);
    }
    first += chunk.tokens.size();
  }
  ws.inputs.reset(variant, dtype, static_cast<std::int32_t>(wanted.size()), arch.hidden_size);
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    kernels::rms_norm(variant, &ws.x[wanted[i] * hidden], weights.final_norm.data(),
                      arch.rms_norm_eps, arch.hidden_size, ws.h.data());
    ws.inputs.set_row(static_cast<std::int32_t>(i), ws.h.data());
  }
  result.logits.resize(wanted.size() * size(arch.vocab_size));
  const kernels::LinearJob job{&weights.head, result.logits.data()};
  kernels::linear(ws.inputs, {&job, 1}, pool);
  if (arch.logits_divisor == 1) return;
  for (float& logit : result.logits) logit /= arch.logits_divisor;
}

}  // namespace

struct Model::State {
  Architecture architecture;
  DType dtype;
  kernels::Variant variant;
  ThreadPool* pool;
  DenseWeights weights;
  // Of the forward pass under way, by micro-batch.
  std::array<Workspace, MoeBackend::kMaxInFlight> workspaces{};
};

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
  MOIETY_ASSIGN(DenseWeights weights, load_dense_weights(checkpoint, dtype, pool));
  return std::unique_ptr<Model>(new Model(std::make_unique<State>(
      State{checkpoint.architecture(), dtype, variant, &pool, std::move(weights), {}})));
}

StepResult Model::forward(std::span<const SequenceChunk> chunks,
                          KvCache& kv,
                          MoeBackend& experts,
                          const StepOptions& options) const {
  const auto make_pass = [&](std::size_t micro_batch) {
    return Pass{state_->architecture,
                state_->weights,
                state_->dtype,
                state_->variant,
                *state_->pool,
                kv,
                experts,
                options,
                state_->workspaces[micro_batch]};
  };
  const std::int32_t num_layers = state_->architecture.num_layers();
  if (options.micro_batches > 1 && options.replay_gate == nullptr) {
    const HalvedChunks halves = halve(chunks);
    if (!halves.first.empty()) {
      // The second half may attend to the first one's rows: its layers always come later.
      Pass a = make_pass(0), b = make_pass(1);
      a.start(halves.first);
      b.start(halves.second);
      a.begin_layer(0);
      for (std::int32_t layer = 0; layer < num_layers; ++layer) {
        b.begin_layer(layer);
        a.finish_layer(layer);
        if (layer + 1 < num_layers) a.begin_layer(layer + 1);
        b.finish_layer(layer);
      }
      a.head(halves.first);
      b.head(halves.second);
      return join(std::move(a.result), b.result);
    }
  }
  Pass pass = make_pass(0);
  pass.start(chunks);
  for (std::int32_t layer = 0; layer < num_layers; ++layer) {
    pass.begin_layer(layer);
    pass.finish_layer(layer);
  }
  pass.head(chunks);
  return std::move(pass.result);
}

}  // namespace moiety
