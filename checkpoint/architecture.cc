#include "checkpoint/architecture.h"

#include <algorithm>

#include "common/check.h"

namespace moiety {
namespace {

const LayerDescription& layer_of(const Architecture& model, std::int32_t layer) {
  MOIETY_CHECK(layer >= 0 && layer < model.num_layers(), "no such layer");
  return model.layers[static_cast<std::size_t>(layer)];
}

// `name` with the expert's number in the place of "{}".
std::string numbered(std::string_view name, std::int32_t expert) {
  const std::size_t place = name.find("{}");
  std::string text(name.substr(0, place));
  if (place != name.npos) {
    text += std::to_string(expert);
    text += name.substr(place + 2);
  }
  return text;
}

// A feed-forward network with three tensors of its own: "mlp.gate_proj.weight", ...
FeedForwardSource module_source(const std::string& prefix,
                                std::int32_t width,
                                std::int32_t hidden) {
  return {{prefix + ".gate_proj.weight", 0, width, hidden},
          {prefix + ".up_proj.weight", 0, width, hidden},
          {prefix + ".down_proj.weight", 0, hidden, width}};
}

// Collects what a checkpoint must have.
class TensorList {
 public:
  void add(std::string name, std::vector<std::int64_t> shape) {
    all_.push_back({std::move(name), std::move(shape)});
  }
  void add(const FeedForwardSource& source) {
    for (const auto* matrix : {&source.gate_proj, &source.up_proj, &source.down_proj}) {
      add(matrix->tensor, {matrix->rows, matrix->columns});
    }
  }
  std::vector<ExpectedTensor> take() { return std::move(all_); }

 private:
  std::vector<ExpectedTensor> all_;
};

void add_attention(const Architecture& model, const std::string& attention, TensorList& all) {
  struct Projection {
    const char* name;
    std::int64_t out, in;
    bool bias;
  };
  const std::int64_t hidden = model.hidden_size;
  const Projection projections[] = {{"q_proj", model.q_size(), hidden, model.qkv_bias},
                                    {"k_proj", model.kv_size(), hidden, model.qkv_bias},
                                    {"v_proj", model.kv_size(), hidden, model.qkv_bias},
                                    {"o_proj", hidden, model.q_size(), model.o_bias}};
  for (const Projection& projection : projections) {
    const std::string name = attention + projection.name;
    all.add(name + ".weight", {projection.out, projection.in});
    if (projection.bias) all.add(name + ".bias", {projection.out});
  }
  if (model.qk_norm != QkNorm::kNone) {
    const bool whole = model.qk_norm == QkNorm::kWholeProjection;
    all.add(attention + "q_norm.weight", {whole ? model.q_size() : model.head_dim});
    all.add(attention + "k_norm.weight", {whole ? model.kv_size() : model.head_dim});
  }
}

void add_experts(const Architecture& model, std::int32_t layer, TensorList& all) {
  const MoeDescription& moe = model.layers[static_cast<std::size_t>(layer)].moe;
  const std::int32_t count = moe.num_routed + moe.num_shared;
  all.add(model.gate_name(layer), {moe.gate_rows, model.hidden_size});
  if (model.layouts.at(model.layout).fused) {
    const FeedForwardSource first = model.expert_source(layer, 0);
    all.add(first.gate_proj.tensor, {count, std::int64_t{2} * moe.intermediate, model.hidden_size});
    all.add(first.down_proj.tensor, {count, model.hidden_size, moe.intermediate});
  } else {
    for (std::int32_t expert = 0; expert < count; ++expert) {
      all.add(model.expert_source(layer, expert));
    }
  }
  if (moe.shared_module_width > 0) all.add(model.shared_module_source(layer));
  if (moe.shared_module_gated) all.add(model.shared_gate_name(layer), {1, model.hidden_size});
}

}  // namespace

std::int32_t Architecture::num_moe_layers() const {
  return static_cast<std::int32_t>(std::count_if(
      layers.begin(), layers.end(), [](const LayerDescription& each) { return !each.is_dense(); }));
}

std::int32_t Architecture::max_routed() const {
  std::int32_t largest = 0;
  for (const LayerDescription& layer : layers) largest = std::max(largest, layer.moe.num_routed);
  return largest;
}

std::int64_t Architecture::expert_parameters(std::int32_t layer) const {
  return std::int64_t{3} * hidden_size * layer_of(*this, layer).moe.intermediate;
}

std::string Architecture::layer_prefix(std::int32_t layer) const {
  return "model.layers." + std::to_string(layer) + ".";
}

std::string Architecture::gate_name(std::int32_t layer) const {
  return layer_prefix(layer).append(layouts.at(layout).gate);
}

FeedForwardSource Architecture::expert_source(std::int32_t layer, std::int32_t expert) const {
  const MoeDescription& moe = layer_of(*this, layer).moe;
  MOIETY_CHECK(expert >= 0 && expert < moe.num_routed + moe.num_shared, "no such expert");
  const ExpertLayout& names = layouts.at(layout);
  const std::string prefix = layer_prefix(layer);
  const std::int64_t place = names.fused ? expert : 0;
  const std::int64_t width = moe.intermediate;
  return {{prefix + numbered(names.gate_proj, expert), place * 2 * width, moe.intermediate,
           hidden_size},
          {prefix + numbered(names.up_proj, expert), place * 2 * width + (names.fused ? width : 0),
           moe.intermediate, hidden_size},
          {prefix + numbered(names.down_proj, expert), place * hidden_size, hidden_size,
           moe.intermediate}};
}

FeedForwardSource Architecture::shared_module_source(std::int32_t layer) const {
  return module_source(layer_prefix(layer).append(shared_module_name),
                       layer_of(*this, layer).moe.shared_module_width, hidden_size);
}

std::string Architecture::shared_gate_name(std::int32_t layer) const {
  return layer_prefix(layer).append(shared_module_name).append("_gate.weight");
}

FeedForwardSource Architecture::dense_source(std::int32_t layer) const {
  return module_source(layer_prefix(layer) + "mlp", layer_of(*this, layer).dense_width,
                       hidden_size);
}

std::vector<ExpectedTensor> expected_tensors(const Architecture& model) {
  TensorList all;
  const std::int64_t hidden = model.hidden_size;
  all.add("model.embed_tokens.weight", {model.vocab_size, hidden});
  for (std::int32_t layer = 0; layer < model.num_layers(); ++layer) {
    const std::string prefix = model.layer_prefix(layer);
    all.add(prefix + model.attention_norm_name + ".weight", {hidden});
    add_attention(model, prefix + "self_attn.", all);
    all.add(prefix + model.ffn_norm_name + ".weight", {hidden});
    if (layer_of(model, layer).is_dense()) {
      all.add(model.dense_source(layer));
    } else {
      add_experts(model, layer, all);
    }
  }
  all.add("model.norm.weight", {hidden});
  if (!model.tie_embeddings) all.add("lm_head.weight", {model.vocab_size, hidden});
  return all.take();
}

}  // namespace moiety
