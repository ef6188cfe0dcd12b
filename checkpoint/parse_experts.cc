// Experts, shared experts and dense layers in config.json.
#include <algorithm>
#include <array>

#include "checkpoint/parse_parts.h"

namespace moiety {
namespace {

// The number of experts in each layer's list. It goes by several names; those that are there must
// agree.
Result<std::int32_t> read_num_experts(ConfigFields& fields, const Family& family) {
  std::string_view name;
  std::int32_t count = 0;
  for (std::string_view each : {"num_local_experts", "num_experts", "n_routed_experts"}) {
    if (!fields.has(each)) continue;
    MOIETY_ASSIGN(const std::int32_t value, fields.integer(each, 1, kMaxExperts));
    if (!name.empty() && value != count) {
      std::string other = "it contradicts ";
      other.append(name).append(", which is ").append(std::to_string(count));
      return fields.refuse(each, other);
    }
    name = each;
    count = value;
  }
  if (name.empty()) return fields.integer(family.num_experts, 1, kMaxExperts);  // is missing
  return count;
}

// The number of shared experts at the end of each layer's expert list.
Result<std::int32_t> read_shared_in_list(ConfigFields& fields, std::size_t num_layers) {
  MOIETY_ASSIGN(const std::int32_t count, fields.integer("num_shared_experts", 0, kMaxExperts));
  if (count > 1) {
    return fields.refuse(
        "num_shared_experts",
        "only 0 or 1 is understood (several share weights that are not implemented)");
  }
  MOIETY_ASSIGN(const auto per_layer,
                fields.integers("num_shared_experts_per_layer", 0, kMaxExperts));
  if (!per_layer.empty() &&
      (per_layer.size() != num_layers || std::any_of(per_layer.begin(), per_layer.end(),
                                                     [&](std::int32_t n) { return n != count; }))) {
    return fields.refuse("num_shared_experts_per_layer",
                         "only null or num_shared_experts (" + std::to_string(count) +
                             ") for each of the " + std::to_string(num_layers) +
                             " layers is understood");
  }
  return count;
}

// Sets num_routed, num_shared and gate_rows where the list also holds the shared experts.
Result<void> read_list_with_shared(ConfigFields& fields, std::int32_t count, Architecture& model) {
  std::vector<std::int32_t> counts(model.layers.size(), count);
  MOIETY_ASSIGN(const std::int32_t num_shared, read_shared_in_list(fields, counts.size()));
  MOIETY_ASSIGN(auto per_layer, fields.integers("num_experts_per_layer", 1, kMaxExperts));
  if (!per_layer.empty()) {
    if (per_layer.size() != counts.size()) {
      return fields.refuse("num_experts_per_layer", "it must have one entry for each of the " +
                                                        std::to_string(counts.size()) + " layers");
    }
    counts = std::move(per_layer);
  }
  for (std::size_t layer = 0; layer < counts.size(); ++layer) {
    MoeDescription& moe = model.layers[layer].moe;
    moe.num_shared = num_shared;
    moe.num_routed = counts[layer] - num_shared;
    moe.gate_rows = counts[layer];
    if (moe.num_routed < 1) {
      return fields.refuse(
          fields.has("num_experts_per_layer") ? "num_experts_per_layer" : "num_experts",
          "layer " + std::to_string(layer) + " would have no routed expert");
    }
  }
  return {};
}

// Which layers have experts.
Result<std::vector<bool>> read_moe_layers(ConfigFields& fields,
                                          const Family& family,
                                          std::size_t num_layers) {
  std::vector<bool> has_experts(num_layers, true);
  if (family.dense_layers == Family::DenseLayers::kQwen) {
    MOIETY_ASSIGN(const std::int32_t step, fields.integer("decoder_sparse_step", 1, 1 << 20, 1));
    MOIETY_ASSIGN(const auto dense, fields.integers("mlp_only_layers", 0, 1 << 20));
    for (std::size_t i = 0; i < num_layers; ++i) {
      has_experts[i] =
          (i + 1) % static_cast<std::size_t>(step) == 0 &&
          std::find(dense.begin(), dense.end(), static_cast<std::int32_t>(i)) == dense.end();
    }
  } else if (family.dense_layers == Family::DenseLayers::kDeepseek) {
    MOIETY_ASSIGN(const std::int32_t first, fields.integer("first_k_dense_replace", 0, 1 << 20, 0));
    MOIETY_ASSIGN(const std::int32_t step, fields.integer("moe_layer_freq", 1, 1 << 20, 1));
    for (std::size_t i = 0; i < num_layers; ++i) {
      has_experts[i] =
          i >= static_cast<std::size_t>(first) && i % static_cast<std::size_t>(step) == 0;
    }
  }
  if (std::none_of(has_experts.begin(), has_experts.end(), [](bool each) { return each; })) {
    return fields.refuse(
        family.dense_layers == Family::DenseLayers::kQwen
            ? (fields.has("mlp_only_layers") ? "mlp_only_layers" : "decoder_sparse_step")
            : (fields.has("first_k_dense_replace") ? "first_k_dense_replace" : "moe_layer_freq"),
        "no layer would have experts; only mixture-of-experts models are served");
  }
  return has_experts;
}

Result<void> read_counts(ConfigFields& fields, const Family& family, Architecture& model) {
  MOIETY_ASSIGN(const std::int32_t count, read_num_experts(fields, family));
  if (family.shared_experts == Family::SharedExperts::kEndOfList) {
    return read_list_with_shared(fields, count, model);
  }
  MOIETY_ASSIGN(const auto has_experts, read_moe_layers(fields, family, model.layers.size()));
  for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
    if (!has_experts[layer]) continue;
    model.layers[layer].moe.num_routed = count;
    model.layers[layer].moe.gate_rows = count;
  }
  return {};
}

// top_k, and how the selected experts are weighed.
Result<void> read_selection(ConfigFields& fields, const Family& family, Architecture& model) {
  MOIETY_ASSIGN(const std::int32_t per_token,
                fields.integer("num_experts_per_tok", 1, kMaxExperts));
  bool norm_topk = true;
  if (!family.always_normalises) {
    MOIETY_ASSIGN(norm_topk, fields.flag("norm_topk_prob", false));
  }
  double scale = 1;
  if (family.has_scoring) {
    MOIETY_ASSIGN(const std::string scoring, fields.text("scoring_func", "softmax"));
    if (scoring != "softmax") {
      return fields.refuse("scoring_func", "only \"softmax\" is understood");
    }
    MOIETY_ASSIGN(const std::string method, fields.text("topk_method", "greedy"));
    if (method != "greedy") return fields.refuse("topk_method", "only \"greedy\" is understood");
    for (const char* groups : {"n_group", "topk_group"}) {
      MOIETY_ASSIGN(const std::int32_t number, fields.integer(groups, 0, kMaxExperts, 1));
      if (number > 1) return fields.refuse(groups, "only 1 (no groups of experts) is understood");
    }
    MOIETY_ASSIGN(scale, fields.number("routed_scaling_factor", 1e-6, 1e6, 1));
  }
  for (LayerDescription& layer : model.layers) {
    MoeDescription& moe = layer.moe;
    if (layer.is_dense()) continue;
    if (norm_topk && moe.num_shared > 0) {
      return fields.refuse("norm_topk_prob",
                           "only false is understood together with shared experts");
    }
    if (per_token <= moe.num_shared) {
      return fields.refuse("num_experts_per_tok", "it counts the shared expert and must exceed it");
    }
    const bool in_list = family.shared_experts == Family::SharedExperts::kEndOfList;
    if (!in_list && per_token > moe.num_routed) {
      return fields.refuse("num_experts_per_tok",
                           "there are only " + std::to_string(moe.num_routed) + " experts");
    }
    moe.top_k = std::min(per_token - moe.num_shared, moe.num_routed);
    // DeepSeek's own code leaves a single expert's weight as it is.
    moe.norm_topk = norm_topk && !(family.has_scoring && moe.top_k == 1);
    moe.routed_scale = static_cast<float>(scale);
  }
  return {};
}

// The width of the shared experts' module; 0 without one.
Result<std::int32_t> read_shared_module(ConfigFields& fields,
                                        const Family& family,
                                        std::int32_t expert_width) {
  if (family.shared_experts == Family::SharedExperts::kGatedModule) {
    return fields.integer("shared_expert_intermediate_size", 1, kMaxWidth);
  }
  if (family.shared_experts != Family::SharedExperts::kFusedModule) return 0;
  MOIETY_ASSIGN(const std::int32_t count, fields.integer("n_shared_experts", 0, kMaxExperts, 0));
  const std::int64_t width = std::int64_t{count} * expert_width;
  if (width > kMaxWidth) {
    return fields.refuse("n_shared_experts", "together they would be " + std::to_string(width) +
                                                 " wide, at most " + std::to_string(kMaxWidth) +
                                                 " is understood");
  }
  return static_cast<std::int32_t>(width);
}

Result<void> read_widths(ConfigFields& fields, const Family& family, Architecture& model) {
  MOIETY_ASSIGN(const std::int32_t width, fields.integer(family.expert_width, 1, kMaxWidth));
  MOIETY_ASSIGN(const std::int32_t shared_width, read_shared_module(fields, family, width));
  std::int32_t dense_width = 0;
  if (model.num_moe_layers() < model.num_layers()) {
    MOIETY_ASSIGN(dense_width, fields.integer("intermediate_size", 1, kMaxWidth));
  }
  fields.ignore("intermediate_size");
  for (LayerDescription& layer : model.layers) {
    if (layer.is_dense()) {
      layer.dense_width = dense_width;
      continue;
    }
    layer.moe.intermediate = width;
    layer.moe.shared_module_width = shared_width;
    layer.moe.shared_module_gated = family.shared_experts == Family::SharedExperts::kGatedModule;
  }
  return {};
}

}  // namespace

Result<void> read_experts(ConfigFields& fields, const Family& family, Architecture& model) {
  model.shared_module_name = family.shared_module_name;
  model.layouts.assign(family.layouts.begin(), family.layouts.end());
  MOIETY_TRY(read_counts(fields, family, model));
  MOIETY_TRY(read_selection(fields, family, model));
  MOIETY_TRY(read_widths(fields, family, model));
  std::int64_t in_all = 0;
  for (const LayerDescription& layer : model.layers) {
    in_all += layer.moe.num_routed + layer.moe.num_shared;
  }
  if (in_all > kMaxExpertsInAll) {
    return fields.refuse("num_hidden_layers", "with their experts that makes " +
                                                  std::to_string(in_all) + " experts, at most " +
                                                  std::to_string(kMaxExpertsInAll) +
                                                  " are understood");
  }
  return {};
}

}  // namespace moiety
