#include "model/weights.h"

#include "kernels/elementwise.h"

namespace moiety {

Result<kernels::PackedMatrix> load_matrix(const SafetensorsSet& tensors,
                                          const std::string& name,
                                          DType dtype) {
  const TensorInfo* info = tensors.find(name);
  if (info == nullptr) return fail(ErrorCode::kNotFound, "the checkpoint has no tensor " + name);
  MOIETY_ASSIGN(const std::vector<float> values, tensors.read_floats(name));
  return kernels::PackedMatrix(dtype, static_cast<std::int32_t>(info->shape.at(0)),
                               static_cast<std::int32_t>(info->shape.at(1)), values);
}

namespace {

/// A tensor's values, rounded to what `dtype` can hold.
Result<std::vector<float>> load_floats(const SafetensorsSet& tensors,
                                       const std::string& name,
                                       DType dtype) {
  MOIETY_ASSIGN(std::vector<float> values, tensors.read_floats(name));
  kernels::round_inputs(dtype, values);
  return values;
}

Result<LayerWeights> load_layer(const Checkpoint& checkpoint, std::int32_t index, DType dtype) {
  const Architecture& arch = checkpoint.architecture();
  const SafetensorsSet& tensors = checkpoint.tensors();
  const std::string prefix = arch.layer_prefix(index);
  const std::string attention = prefix + "self_attn.";
  LayerWeights layer;
  MOIETY_ASSIGN(layer.attention_norm,
                load_floats(tensors, prefix + arch.attention_norm_name + ".weight", dtype));
  MOIETY_ASSIGN(layer.ffn_norm,
                load_floats(tensors, prefix + arch.ffn_norm_name + ".weight", dtype));
  if (arch.qk_norm == QkNorm::kWholeProjection) {
    MOIETY_ASSIGN(layer.q_norm, load_floats(tensors, attention + "q_norm.weight", dtype));
    MOIETY_ASSIGN(layer.k_norm, load_floats(tensors, attention + "k_norm.weight", dtype));
  }
  MOIETY_ASSIGN(layer.q, load_matrix(tensors, attention + "q_proj.weight", dtype));
  MOIETY_ASSIGN(layer.k, load_matrix(tensors, attention + "k_proj.weight", dtype));
  MOIETY_ASSIGN(layer.v, load_matrix(tensors, attention + "v_proj.weight", dtype));
  MOIETY_ASSIGN(layer.o, load_matrix(tensors, attention + "o_proj.weight", dtype));
  const MoeDescription& moe = arch.layers[static_cast<std::size_t>(index)].moe;
  MOIETY_ASSIGN(const std::vector<float> gate, load_floats(tensors, arch.gate_name(index), dtype));
  layer.gate = kernels::PackedMatrix(DType::kF32, moe.gate_rows, arch.hidden_size, gate);
  for (std::int32_t i = 0; i < moe.num_shared; ++i) {
    const Architecture::ExpertNames names = arch.expert_names(index, moe.num_routed + i);
    kernels::ExpertWeights expert;
    MOIETY_ASSIGN(expert.gate, load_matrix(tensors, names.gate_proj, dtype));
    MOIETY_ASSIGN(expert.up, load_matrix(tensors, names.up_proj, dtype));
    MOIETY_ASSIGN(expert.down, load_matrix(tensors, names.down_proj, dtype));
    layer.shared.push_back(std::move(expert));
  }
  return layer;
}

std::size_t layer_bytes(const LayerWeights& layer) {
  std::size_t bytes = (layer.attention_norm.size() + layer.ffn_norm.size() + layer.q_norm.size() +
                       layer.k_norm.size()) *
                      sizeof(float);
  for (const auto* matrix : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate}) {
    bytes += matrix->num_bytes();
  }
  for (const auto& expert : layer.shared) bytes += expert.num_bytes();
  return bytes;
}

}  // namespace

Result<DenseWeights> load_dense_weights(const Checkpoint& checkpoint, DType dtype) {
  const Architecture& arch = checkpoint.architecture();
  const SafetensorsSet& tensors = checkpoint.tensors();
  DenseWeights weights;
  MOIETY_ASSIGN(weights.embedding, load_floats(tensors, "model.embed_tokens.weight", dtype));
  for (std::int32_t i = 0; i < arch.num_layers(); ++i) {
    MOIETY_ASSIGN(LayerWeights layer, load_layer(checkpoint, i, dtype));
    weights.num_bytes += layer_bytes(layer);
    weights.layers.push_back(std::move(layer));
  }
  MOIETY_ASSIGN(weights.final_norm, load_floats(tensors, "model.norm.weight", dtype));
  MOIETY_ASSIGN(
      weights.head,
      load_matrix(tensors, arch.tie_embeddings ? "model.embed_tokens.weight" : "lm_head.weight",
                  dtype));
  weights.num_bytes += (weights.embedding.size() + weights.final_norm.size()) * sizeof(float) +
                       weights.head.num_bytes();
  return weights;
}

}  // namespace moiety
