// config.json -> Architecture.
#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include "checkpoint/architecture.h"
#include "checkpoint/config_fields.h"

namespace moiety {
namespace {

// Far above every published model, and small enough that no product of two of them overflows and
// that a hostile file cannot make us allocate what its tensors do not back.
constexpr std::int32_t kMaxVocab = 1 << 24;
constexpr std::int32_t kMaxWidth = 1 << 20;
constexpr std::int32_t kMaxHeads = 1024;
constexpr std::int32_t kMaxHeadDim = 1024;
constexpr std::int32_t kMaxLayers = 1024;
constexpr std::int32_t kMaxExperts = 4096;          // per layer
constexpr std::int64_t kMaxExpertsInAll = 1 << 17;  // over all layers
constexpr std::int32_t kMaxPositions = 1 << 24;

// What sets one architecture apart, apart from its numbers.
struct Family {
  std::string_view name;
  std::string_view model_type;
  std::string_view attention_norm_name;
  std::string_view ffn_norm_name;
  QkNorm qk_norm;
  bool shared_in_list;  // the last experts of the list are shared; num_experts and top-k count them
  bool clips_qkv;
};

constexpr Family kFamilies[] = {
    {"EmoForCausalLM", "emo", "pre_attention_layernorm", "pre_feedforward_layernorm", QkNorm::kNone,
     true, false},
    {"OlmoeForCausalLM", "olmoe", "input_layernorm", "post_attention_layernorm",
     QkNorm::kWholeProjection, false, true},
};

// Fields that say nothing about the answer: training, tools, the tokenizer, the sampler's defaults.
constexpr std::string_view kIgnored[] = {
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "decoder_start_token_id",
    "do_sample",
    "experts_implementation",
    "finetuning_task",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "label2id",
    "max_length",
    "max_new_tokens",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "repetition_penalty",
    "return_dict",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "router_z_loss_coef",
    "sep_token_id",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torchscript",
    "transformers_version",
    "unk_token_id",
    "use_bfloat16",
    "use_cache",
};

std::string supported_families() {
  std::string text = "supported are";
  for (const Family& family : kFamilies) {
    text += &family == kFamilies ? " " : ", ";
    text += family.name;
  }
  return text;
}

Result<const Family*> read_family(ConfigFields& fields) {
  MOIETY_ASSIGN(const auto names, fields.texts("architectures"));
  MOIETY_ASSIGN(const std::string model_type, fields.text("model_type", ""));
  if (names.empty() && model_type.empty()) {
    return fields.refuse("architectures", supported_families());
  }
  for (const Family& family : kFamilies) {
    if (names.empty() ? family.model_type != model_type
                      : names.size() != 1 || family.name != names.front()) {
      continue;
    }
    if (!model_type.empty() && model_type != family.model_type) {
      return fields.refuse("model_type", std::string(family.name) + " has \"" +
                                             std::string(family.model_type) + '"');
    }
    return &family;
  }
  return fields.refuse(names.empty() ? "model_type" : "architectures", supported_families());
}

Result<void> read_attention(ConfigFields& fields, const Family& family, Architecture& model) {
  MOIETY_ASSIGN(model.num_heads, fields.integer("num_attention_heads", 1, kMaxHeads));
  MOIETY_ASSIGN(model.num_kv_heads,
                fields.integer("num_key_value_heads", 1, kMaxHeads, model.num_heads));
  if (model.num_heads % model.num_kv_heads != 0) {
    return fields.refuse("num_key_value_heads", "it must divide num_attention_heads, which is " +
                                                    std::to_string(model.num_heads));
  }
  if (fields.has("head_dim")) {
    MOIETY_ASSIGN(model.head_dim, fields.integer("head_dim", 2, kMaxHeadDim));
    if (model.head_dim % 2 != 0) return fields.refuse("head_dim", "it must be even");
  } else {
    model.head_dim = model.hidden_size / model.num_heads;
    if (model.hidden_size % model.num_heads != 0 || model.head_dim % 2 != 0 ||
        model.head_dim == 0 || model.head_dim > kMaxHeadDim) {
      return fields.refuse("num_attention_heads", "it must divide hidden_size, which is " +
                                                      std::to_string(model.hidden_size) +
                                                      ", into heads of an even width of at most " +
                                                      std::to_string(kMaxHeadDim));
    }
  }
  fields.ignore("head_dim");
  model.attention_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(model.head_dim)));
  model.qk_norm = family.qk_norm;
  MOIETY_ASSIGN(const bool bias, fields.flag("attention_bias", false));
  if (bias) return fields.refuse("attention_bias", "only projections without bias are understood");
  if (family.clips_qkv && fields.has("clip_qkv")) {
    MOIETY_ASSIGN(const double clip, fields.number("clip_qkv", 1e-6, 1e6));
    model.clip_qkv = static_cast<float>(clip);
  }
  return {};
}

// One of rope_parameters (transformers 5) and rope_scaling (transformers 4).
Result<void> read_rope_block(ConfigFields& fields,
                             std::string_view name,
                             std::optional<double>& theta) {
  MOIETY_ASSIGN(auto block, fields.object(name));
  if (!block) return {};
  for (const char* field : {"rope_type", "type"}) {
    MOIETY_ASSIGN(const std::string kind, block->text(field, "default"));
    if (kind != "default") return block->refuse(field, "only \"default\" is understood");
  }
  MOIETY_ASSIGN(const double rotated, block->number("partial_rotary_factor", 0, 1, 1));
  if (rotated != 1) return block->refuse("partial_rotary_factor", "only 1 is understood");
  if (block->has("rope_theta")) {
    MOIETY_ASSIGN(theta, block->number("rope_theta", 1, 1e15));
  }
  block->ignore("rope_theta");
  return block->refuse_unread();
}

Result<void> read_rope(ConfigFields& fields, RopeDescription& rope) {
  std::optional<double> theta;
  MOIETY_TRY(read_rope_block(fields, "rope_scaling", theta));
  std::optional<double> newer;
  MOIETY_TRY(read_rope_block(fields, "rope_parameters", newer));
  if (newer) {
    if (theta && *theta != *newer) {
      return fields.refuse("rope_parameters", "its rope_theta contradicts rope_scaling");
    }
    theta = newer;
  }
  if (!theta || fields.has("rope_theta")) {
    MOIETY_ASSIGN(const double plain, fields.number("rope_theta", 1, 1e15));
    if (theta && *theta != plain) {
      return fields.refuse("rope_theta", "it contradicts the rope_theta of rope_parameters");
    }
    theta = plain;
  }
  fields.ignore("rope_theta");
  rope.theta = *theta;
  MOIETY_ASSIGN(const double rotated, fields.number("partial_rotary_factor", 0, 1, 1));
  if (rotated != 1) return fields.refuse("partial_rotary_factor", "only 1 is understood");
  return {};
}

Result<std::int32_t> read_num_experts(ConfigFields& fields) {
  const bool both = fields.has("num_experts") && fields.has("num_local_experts");
  const char* name = fields.has("num_local_experts") ? "num_local_experts" : "num_experts";
  MOIETY_ASSIGN(const std::int32_t count, fields.integer(name, 1, kMaxExperts));
  if (both) {
    MOIETY_ASSIGN(const std::int32_t other, fields.integer("num_experts", 1, kMaxExperts));
    if (other != count) {
      return fields.refuse("num_experts",
                           "it contradicts num_local_experts, which is " + std::to_string(count));
    }
  }
  return count;
}

// The number of shared experts at the end of each layer's expert list.
Result<std::int32_t> read_num_shared(ConfigFields& fields, std::size_t num_layers) {
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

Result<void> read_experts(ConfigFields& fields, const Family& family, Architecture& model) {
  MOIETY_ASSIGN(const std::int32_t count, read_num_experts(fields));
  MOIETY_ASSIGN(const std::int32_t per_token,
                fields.integer("num_experts_per_tok", 1, kMaxExperts));
  MOIETY_ASSIGN(const std::int32_t width, fields.integer("intermediate_size", 1, kMaxWidth));
  MOIETY_ASSIGN(const bool norm_topk, fields.flag("norm_topk_prob", false));

  std::vector<std::int32_t> counts(model.layers.size(), count);
  std::int32_t num_shared = 0;
  if (family.shared_in_list) {
    MOIETY_ASSIGN(num_shared, read_num_shared(fields, counts.size()));
    if (norm_topk && num_shared > 0) {
      return fields.refuse("norm_topk_prob",
                           "only false is understood together with shared experts");
    }
    MOIETY_ASSIGN(auto per_layer, fields.integers("num_experts_per_layer", 1, kMaxExperts));
    if (!per_layer.empty()) {
      if (per_layer.size() != counts.size()) {
        return fields.refuse(
            "num_experts_per_layer",
            "it must have one entry for each of the " + std::to_string(counts.size()) + " layers");
      }
      counts = std::move(per_layer);
    }
  }
  if (per_token <= num_shared) {
    return fields.refuse("num_experts_per_tok", "it counts the shared expert and must exceed it");
  }
  if (!family.shared_in_list && per_token > count) {
    return fields.refuse("num_experts_per_tok",
                         "there are only " + std::to_string(count) + " experts");
  }
  std::int64_t in_all = 0;
  for (std::size_t layer = 0; layer < counts.size(); ++layer) {
    in_all += counts[layer];
    MoeDescription& moe = model.layers[layer].moe;
    moe.num_shared = num_shared;
    moe.num_routed = counts[layer] - num_shared;
    moe.top_k = std::min(per_token - num_shared, moe.num_routed);
    moe.gate_rows = counts[layer];
    moe.intermediate = width;
    moe.norm_topk = norm_topk;
    if (moe.num_routed < 1) {
      return fields.refuse(
          fields.has("num_experts_per_layer") ? "num_experts_per_layer" : "num_experts",
          "layer " + std::to_string(layer) + " would have no routed expert");
    }
  }
  if (in_all > kMaxExpertsInAll) {
    return fields.refuse("num_hidden_layers", "with their experts that makes " +
                                                  std::to_string(in_all) + " experts, at most " +
                                                  std::to_string(kMaxExpertsInAll) +
                                                  " are understood");
  }
  return {};
}

Result<DType> read_dtype(ConfigFields& fields) {
  const char* name = fields.has("dtype") ? "dtype" : "torch_dtype";
  fields.ignore("torch_dtype");
  MOIETY_ASSIGN(std::string text, fields.text(name, "float32"));
  if (text.starts_with("torch.")) text.erase(0, 6);
  if (text == "float32") return DType::kF32;
  if (text == "bfloat16") return DType::kBF16;
  if (text == "float16") return DType::kF16;
  return fields.refuse(name, "only float32, bfloat16 and float16 are understood");
}

Result<void> add_eos_ids(ConfigFields& fields, Architecture& model) {
  MOIETY_ASSIGN(const auto ids, fields.integers("eos_token_id", 0, model.vocab_size - 1));
  for (std::int32_t id : ids) {
    if (std::find(model.eos_ids.begin(), model.eos_ids.end(), id) == model.eos_ids.end()) {
      model.eos_ids.push_back(id);
    }
  }
  return {};
}

// Fields of these families that switch on something else than what is implemented. refuse_unread()
// would refuse them too; this says more.
Result<void> refuse_other_computations(ConfigFields& fields) {
  constexpr std::array<std::string_view, 5> kMustBeNull = {
      "always_active_experts", "always_active_experts_per_layer", "dense_intermediate_size",
      "quantization_config", "compression_config"};
  for (std::string_view name : kMustBeNull) {
    if (fields.has(name)) return fields.refuse(name, "only null is understood");
    fields.ignore(name);
  }
  MOIETY_ASSIGN(const std::string activation, fields.text("hidden_act", "silu"));
  if (activation != "silu") return fields.refuse("hidden_act", "only \"silu\" is understood");
  MOIETY_ASSIGN(const auto layer_types, fields.texts("layer_types"));
  for (const std::string& type : layer_types) {
    if (type != "full_attention") {
      return fields.refuse("layer_types", "only \"full_attention\" is understood");
    }
  }
  return {};
}

}  // namespace

Result<Architecture> parse_architecture(std::string_view config_json, bool pruned) {
  MOIETY_ASSIGN(ConfigFields fields, ConfigFields::parse(config_json));
  MOIETY_ASSIGN(const Family* family, read_family(fields));
  Architecture model;
  model.name = family->name;
  model.attention_norm_name = family->attention_norm_name;
  model.ffn_norm_name = family->ffn_norm_name;
  model.physically_pruned = pruned;
  MOIETY_TRY(refuse_other_computations(fields));
  MOIETY_ASSIGN(model.vocab_size, fields.integer("vocab_size", 1, kMaxVocab));
  MOIETY_ASSIGN(model.hidden_size, fields.integer("hidden_size", 1, kMaxWidth));
  MOIETY_ASSIGN(const std::int32_t layers, fields.integer("num_hidden_layers", 1, kMaxLayers));
  model.layers.resize(static_cast<std::size_t>(layers));
  MOIETY_ASSIGN(model.max_positions, fields.integer("max_position_embeddings", 1, kMaxPositions));
  MOIETY_ASSIGN(const double eps, fields.number("rms_norm_eps", 1e-20, 0.1));
  model.rms_norm_eps = static_cast<float>(eps);
  MOIETY_TRY(read_attention(fields, *family, model));
  MOIETY_TRY(read_rope(fields, model.rope));
  MOIETY_TRY(read_experts(fields, *family, model));
  MOIETY_ASSIGN(model.tie_embeddings, fields.flag("tie_word_embeddings", false));
  MOIETY_ASSIGN(model.weights_dtype, read_dtype(fields));
  MOIETY_TRY(add_eos_ids(fields, model));
  for (std::string_view name : kIgnored) fields.ignore(name);
  MOIETY_TRY(fields.refuse_unread());
  return model;
}

Result<void> add_generation_config(std::string_view generation_config_json,
                                   Architecture& architecture) {
  MOIETY_ASSIGN(ConfigFields fields, ConfigFields::parse(generation_config_json));
  return add_eos_ids(fields, architecture);
}

}  // namespace moiety
