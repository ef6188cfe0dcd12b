#include "checkpoint/architecture.h"

#include <algorithm>

#include "common/check.h"

namespace moiety {

std::int32_t Architecture::max_routed() const {
  std::int32_t largest = 0;
  for (const LayerDescription& layer : layers) largest = std::max(largest, layer.moe.num_routed);
  return largest;
}

std::int64_t Architecture::expert_parameters(std::int32_t layer) const {
  MOIETY_CHECK(layer >= 0 && layer < num_layers(), "no such layer");
  return std::int64_t{3} * hidden_size * layers[static_cast<std::size_t>(layer)].moe.intermediate;
}

std::string Architecture::layer_prefix(std::int32_t layer) const {
  return "model.layers." + std::to_string(layer) + ".";
}

std::string Architecture::gate_name(std::int32_t layer) const {
  return layer_prefix(layer) + "mlp.gate.weight";
}

Architecture::ExpertNames Architecture::expert_names(std::int32_t layer,
                                                     std::int32_t expert) const {
  const std::string prefix = layer_prefix(layer) + "mlp.experts." + std::to_string(expert) + ".";
  return {prefix + "gate_proj.weight", prefix + "up_proj.weight", prefix + "down_proj.weight"};
}

std::vector<ExpectedTensor> expected_tensors(const Architecture& model) {
  std::vector<ExpectedTensor> all;
  const std::int64_t hidden = model.hidden_size;
  all.push_back({"model.embed_tokens.weight", {model.vocab_size, hidden}});
  for (std::int32_t layer = 0; layer < model.num_layers(); ++layer) {
    const std::string prefix = model.layer_prefix(layer);
    const std::string attention = prefix + "self_attn.";
    all.push_back({prefix + model.attention_norm_name + ".weight", {hidden}});
    all.push_back({attention + "q_proj.weight", {model.q_size(), hidden}});
    all.push_back({attention + "k_proj.weight", {model.kv_size(), hidden}});
    all.push_back({attention + "v_proj.weight", {model.kv_size(), hidden}});
    all.push_back({attention + "o_proj.weight", {hidden, model.q_size()}});
    if (model.qk_norm == QkNorm::kWholeProjection) {
      all.push_back({attention + "q_norm.weight", {model.q_size()}});
      all.push_back({attention + "k_norm.weight", {model.kv_size()}});
    }
    all.push_back({prefix + model.ffn_norm_name + ".weight", {hidden}});
    const MoeDescription& moe = model.layers[static_cast<std::size_t>(layer)].moe;
    all.push_back({model.gate_name(layer), {moe.gate_rows, hidden}});
    for (std::int32_t expert = 0; expert < moe.num_routed + moe.num_shared; ++expert) {
      Architecture::ExpertNames names = model.expert_names(layer, expert);
      all.push_back({std::move(names.gate_proj), {moe.intermediate, hidden}});
      all.push_back({std::move(names.up_proj), {moe.intermediate, hidden}});
      all.push_back({std::move(names.down_proj), {hidden, moe.intermediate}});
    }
  }
  all.push_back({"model.norm.weight", {hidden}});
  if (!model.tie_embeddings) all.push_back({"lm_head.weight", {model.vocab_size, hidden}});
  return all;
}

}  // namespace moiety
