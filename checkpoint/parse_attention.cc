// Attention's fields of config.json.
#include <algorithm>
#include <cmath>

#include "checkpoint/parse_parts.h"
#include "common/log.h"

namespace moiety {
namespace {

constexpr std::string_view kFull = "full_attention";
constexpr std::string_view kSliding = "sliding_attention";
constexpr std::int32_t kDefaultMaxWindowLayers = 28;

Result<void> read_heads(ConfigFields& fields, Architecture& model) {
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
  return {};
}

Result<void> read_biases(ConfigFields& fields, const Family& family, Architecture& model) {
  switch (family.biases) {
    case Family::Biases::kNone: {
      MOIETY_ASSIGN(const bool bias, fields.flag("attention_bias", false));
      if (bias) {
        return fields.refuse("attention_bias", "only projections without bias are understood");
      }
      return {};
    }
    case Family::Biases::kAttentionBias: {
      MOIETY_ASSIGN(model.qkv_bias, fields.flag("attention_bias", false));
      model.o_bias = model.qkv_bias;
      return {};
    }
    case Family::Biases::kQkvBias: {
      MOIETY_ASSIGN(model.qkv_bias, fields.flag("qkv_bias", true));
      return {};
    }
  }
  return {};
}

// The window of the layers that have one; 0 where the configuration switches windows off.
Result<std::int32_t> read_window(ConfigFields& fields, const Family& family) {
  if (family.windows == Family::Windows::kNone) return 0;
  if (family.windows != Family::Windows::kAlways) {
    MOIETY_ASSIGN(const bool used, fields.flag("use_sliding_window", false));
    if (!used) {
      fields.ignore("sliding_window");
      return 0;
    }
    if (!fields.has("sliding_window")) {
      return fields.refuse("sliding_window", "use_sliding_window asks for a number of tokens");
    }
  }
  if (!fields.has("sliding_window")) return 0;
  return fields.integer("sliding_window", 1, kMaxPositions);
}

// Which layers slide when layer_types does not say.
Result<std::vector<bool>> default_sliding(ConfigFields& fields,
                                          const Family& family,
                                          std::size_t num_layers,
                                          bool has_window) {
  std::vector<bool> sliding(num_layers, has_window);
  if (family.windows == Family::Windows::kNone || family.windows == Family::Windows::kAlways) {
    return sliding;
  }
  // Qwen2's default, as transformers 5 has it: every other one of the first max_window_layers.
  // Qwen3 writes the field and takes no notice of it.
  MOIETY_ASSIGN(const std::int32_t last,
                fields.integer("max_window_layers", 0, 1 << 20, kDefaultMaxWindowLayers));
  if (family.windows == Family::Windows::kLayerTypes) {
    for (std::size_t i = 0; i < num_layers; ++i) {
      sliding[i] = has_window && i % 2 == 0 && i < static_cast<std::size_t>(last);
    }
  }
  return sliding;
}

Result<void> read_windows(ConfigFields& fields, const Family& family, Architecture& model) {
  MOIETY_ASSIGN(const std::int32_t window, read_window(fields, family));
  MOIETY_ASSIGN(std::vector<bool> sliding,
                default_sliding(fields, family, model.layers.size(), window > 0));
  MOIETY_ASSIGN(const auto types, fields.texts("layer_types"));
  if (types.empty() && window > 0 && family.windows == Family::Windows::kLayerTypes) {
    log_warning(
        "config.json: use_sliding_window is true and layer_types is missing: layers 0, 2, 4, ... "
        "below max_window_layers have a window, as in transformers 5; in transformers 4 every "
        "layer has one, or with flash attention those from max_window_layers on; add layer_types "
        "to choose");
  }
  if (!types.empty() && types.size() != model.layers.size()) {
    return fields.refuse("layer_types", "it must have one entry for each of the " +
                                            std::to_string(model.layers.size()) + " layers");
  }
  for (std::size_t i = 0; i < types.size(); ++i) {
    if (types[i] != kFull && types[i] != kSliding) {
      return fields.refuse("layer_types",
                           "only \"full_attention\" and \"sliding_attention\" are understood");
    }
    const bool slides = types[i] == kSliding;
    if (slides && window == 0) {
      return fields.refuse("layer_types", "no window is switched on (use_sliding_window)");
    }
    if (family.windows == Family::Windows::kLayerTypes) {
      sliding[i] = slides;
    } else if (slides != sliding[i]) {
      return fields.refuse("layer_types", std::string(family.name) + " has a window in " +
                                              (sliding[i] ? "every layer" : "no layer") +
                                              " with this sliding_window");
    }
  }
  for (std::size_t i = 0; i < sliding.size(); ++i) {
    model.layers[i].window = sliding[i] ? window : 0;
  }
  return {};
}

Result<void> read_multipliers(ConfigFields& fields, const Family& family, Architecture& model) {
  model.attention_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(model.head_dim)));
  if (!family.has_multipliers) return {};
  struct Multiplier {
    const char* field;
    float& value;
  };
  for (const Multiplier& each : {Multiplier{"attention_multiplier", model.attention_scale},
                                 {"embedding_multiplier", model.embedding_multiplier},
                                 {"residual_multiplier", model.residual_multiplier},
                                 {"logits_scaling", model.logits_divisor}}) {
    MOIETY_ASSIGN(const double value, fields.number(each.field, 1e-6, 1e6, 1));
    each.value = static_cast<float>(value);
  }
  return {};
}

}  // namespace

Result<void> read_attention(ConfigFields& fields, const Family& family, Architecture& model) {
  MOIETY_TRY(read_heads(fields, model));
  MOIETY_TRY(read_biases(fields, family, model));
  MOIETY_TRY(read_windows(fields, family, model));
  MOIETY_TRY(read_multipliers(fields, family, model));
  model.qk_norm = family.qk_norm;
  // What some configurations say about the architecture once more.
  const bool has_qk_norm = model.qk_norm != QkNorm::kNone;
  MOIETY_ASSIGN(const bool use_qk_norm, fields.flag("use_qk_norm", has_qk_norm));
  if (use_qk_norm != has_qk_norm)
    return fields.refuse("use_qk_norm",
                         std::string("it is always ") + (has_qk_norm ? "true" : "false") + " here");
  if (family.clips_qkv && fields.has("clip_qkv")) {
    MOIETY_ASSIGN(const double clip, fields.number("clip_qkv", 1e-6, 1e6));
    model.clip_qkv = static_cast<float>(clip);
  }
  return {};
}

}  // namespace moiety
