#include "model/weights.h"

#include "kernels/elementwise.h"
#include "kernels/pack_stream.h"

namespace moiety {
namespace {

Result<kernels::PackedMatrix> load_matrix(const SafetensorsSet& tensors,
                                          const MatrixSource& source,
                                          DType dtype) {
  const TensorInfo* info = tensors.find(source.tensor);
  if (info == nullptr) {
    return fail(ErrorCode::kNotFound, "the checkpoint has no tensor " + source.tensor);
  }
  return kernels::pack_stream(dtype, source.rows, source.columns, info->dtype,
                              [&](std::int64_t row, std::span<std::byte> out) {
                                return tensors.read_rows(source, row, out);
                              });
}

Result<kernels::ExpertWeights> load_feed_forward(const SafetensorsSet& tensors,
                                                 const FeedForwardSource& source,
                                                 DType dtype) {
  kernels::ExpertWeights weights;
  MOIETY_ASSIGN(weights.gate, load_matrix(tensors, source.gate_proj, dtype));
  MOIETY_ASSIGN(weights.up, load_matrix(tensors, source.up_proj, dtype));
  MOIETY_ASSIGN(weights.down, load_matrix(tensors, source.down_proj, dtype));
  return weights;
}

/// A tensor's values, rounded to what `dtype` can hold.
Result<std::vector<float>> load_floats(const SafetensorsSet& tensors,
                                       const std::string& name,
                                       DType dtype) {
  MOIETY_ASSIGN(std::vector<float> values, tensors.read_floats(name));
  kernels::round_inputs(dtype, values);
  return values;
}

/// A matrix that is multiplied in fp32: values of `dtype`, stored as F32.
Result<kernels::PackedMatrix> load_gate(const SafetensorsSet& tensors,
                                        const std::string& name,
                                        std::int32_t rows,
                                        std::int32_t hidden,
                                        DType dtype) {
  MOIETY_ASSIGN(const std::vector<float> values, load_floats(tensors, name, dtype));
  return kernels::PackedMatrix(DType::kF32, rows, hidden, values);
}

Result<void> load_attention(const Checkpoint& checkpoint,
                            const std::string& attention,
                            DType dtype,
                            LayerWeights& layer) {
  const Architecture& arch = checkpoint.architecture();
  const SafetensorsSet& tensors = checkpoint.tensors();
  struct Projection {
    const char* name;
    std::int32_t rows, columns;
    bool has_bias;
    kernels::PackedMatrix& weight;
    std::vector<float>& bias;
  };
  const std::int32_t hidden = arch.hidden_size;
  const Projection projections[] = {
      {"q_proj", arch.q_size(), hidden, arch.qkv_bias, layer.q, layer.q_bias},
      {"k_proj", arch.kv_size(), hidden, arch.qkv_bias, layer.k, layer.k_bias},
      {"v_proj", arch.kv_size(), hidden, arch.qkv_bias, layer.v, layer.v_bias},
      {"o_proj", hidden, arch.q_size(), arch.o_bias, layer.o, layer.o_bias}};
  for (const Projection& each : projections) {
    const std::string name = attention + each.name;
    MOIETY_ASSIGN(each.weight,
                  load_matrix(tensors, {name + ".weight", 0, each.rows, each.columns}, dtype));
    if (each.has_bias) {
      MOIETY_ASSIGN(each.bias, load_floats(tensors, name + ".bias", dtype));
    }
  }
  if (arch.qk_norm != QkNorm::kNone) {
    MOIETY_ASSIGN(layer.q_norm, load_floats(tensors, attention + "q_norm.weight", dtype));
    MOIETY_ASSIGN(layer.k_norm, load_floats(tensors, attention + "k_norm.weight", dtype));
  }
  return {};
}

Result<void> load_always_on(const Checkpoint& checkpoint,
                            std::int32_t index,
                            DType dtype,
                            LayerWeights& layer) {
  const Architecture& arch = checkpoint.architecture();
  const LayerDescription& description = arch.layers[static_cast<std::size_t>(index)];
  const MoeDescription& moe = description.moe;
  std::vector<FeedForwardSource> sources;
  if (description.is_dense()) sources.push_back(arch.dense_source(index));
  if (moe.shared_module_width > 0) sources.push_back(arch.shared_module_source(index));
  for (std::int32_t i = 0; i < moe.num_shared; ++i) {
    sources.push_back(arch.expert_source(index, moe.num_routed + i));
  }
  for (const FeedForwardSource& source : sources) {
    MOIETY_ASSIGN(auto weights, load_feed_forward(checkpoint.tensors(), source, dtype));
    layer.always_on.push_back(std::move(weights));
  }
  if (moe.shared_module_gated) {
    MOIETY_ASSIGN(
        layer.always_on_gate,
        load_gate(checkpoint.tensors(), arch.shared_gate_name(index), 1, arch.hidden_size, dtype));
  }
  return {};
}

Result<LayerWeights> load_layer(const Checkpoint& checkpoint, std::int32_t index, DType dtype) {
  const Architecture& arch = checkpoint.architecture();
  const SafetensorsSet& tensors = checkpoint.tensors();
  const std::string prefix = arch.layer_prefix(index);
  const LayerDescription& description = arch.layers[static_cast<std::size_t>(index)];
  LayerWeights layer;
  MOIETY_ASSIGN(layer.attention_norm,
                load_floats(tensors, prefix + arch.attention_norm_name + ".weight", dtype));
  MOIETY_ASSIGN(layer.ffn_norm,
                load_floats(tensors, prefix + arch.ffn_norm_name + ".weight", dtype));
  MOIETY_TRY(load_attention(checkpoint, prefix + "self_attn.", dtype, layer));
  if (!description.is_dense()) {
    MOIETY_ASSIGN(layer.gate, load_gate(tensors, arch.gate_name(index), description.moe.gate_rows,
                                        arch.hidden_size, dtype));
  }
  MOIETY_TRY(load_always_on(checkpoint, index, dtype, layer));
  return layer;
}

std::size_t layer_bytes(const LayerWeights& layer) {
  std::size_t bytes = 0;
  for (const auto* values : {&layer.attention_norm, &layer.ffn_norm, &layer.q_norm, &layer.k_norm,
                             &layer.q_bias, &layer.k_bias, &layer.v_bias, &layer.o_bias}) {
    bytes += values->size() * sizeof(float);
  }
  for (const auto* matrix :
       {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.always_on_gate}) {
    bytes += matrix->num_bytes();
  }
  for (const auto& expert : layer.always_on) bytes += expert.num_bytes();
  return bytes;
}

}  // namespace

Result<DenseWeights> load_dense_weights(const Checkpoint& checkpoint,
                                        DType dtype,
                                        ThreadPool& pool) {
  const Architecture& arch = checkpoint.architecture();
  const SafetensorsSet& tensors = checkpoint.tensors();
  DenseWeights weights;
  constexpr const char* kEmbedding = "model.embed_tokens.weight";
  // The head is the largest piece: it is begun first.
  weights.layers.resize(arch.layers.size());
  const Result<void> loaded =
      pool.try_for(1 + arch.layers.size(), [&](std::size_t task) -> Result<void> {
        if (task == 0) {
          const MatrixSource head{arch.tie_embeddings ? kEmbedding : "lm_head.weight", 0,
                                  arch.vocab_size, arch.hidden_size};
          MOIETY_ASSIGN(weights.head, load_matrix(tensors, head, dtype));
        } else {
          MOIETY_ASSIGN(weights.layers[task - 1],
                        load_layer(checkpoint, static_cast<std::int32_t>(task - 1), dtype));
        }
        return {};
      });
  MOIETY_TRY(loaded);
  MOIETY_ASSIGN(weights.embedding, EmbeddingTable::load(tensors, kEmbedding, arch.vocab_size,
                                                        arch.hidden_size, dtype, pool));
  MOIETY_ASSIGN(weights.final_norm, load_floats(tensors, "model.norm.weight", dtype));
  weights.num_bytes = weights.embedding.num_bytes() + weights.final_norm.size() * sizeof(float) +
                      weights.head.num_bytes();
  for (const LayerWeights& layer : weights.layers) weights.num_bytes += layer_bytes(layer);
  return weights;
}

}  // namespace moiety
