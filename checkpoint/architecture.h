#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/dtype.h"
#include "common/result.h"

namespace moiety {

/// Rotary position embedding. Other kinds than `default` are refused until they are implemented.
struct RopeDescription {
  double theta = 10000.0;
};

enum class QkNorm : std::uint8_t {
  kNone,
  kWholeProjection,  ///< RMSNorm over the whole q (k) projection, before the split into heads
                     ///< (OLMoE)
};

/// The mixture-of-experts part of one layer.
///
/// Experts are numbered as in the checkpoint's expert list: routed ones are [0, num_routed), shared
/// ones that are part of that list (EMO) follow at [num_routed, num_routed + num_shared).
/// The gate's weight has `gate_rows` rows, of which only the first num_routed take part.
struct MoeDescription {
  std::int32_t num_routed = 0;
  std::int32_t num_shared = 0;
  std::int32_t top_k = 0;  ///< routed experts per token (shared ones not counted), <= num_routed
  std::int32_t gate_rows = 0;     ///< num_routed + num_shared for EMO, num_routed for OLMoE
  std::int32_t intermediate = 0;  ///< width of one expert
  bool norm_topk = false;         ///< divide the top-k probabilities by their sum
};

struct LayerDescription {
  MoeDescription moe;
};

/// What one forward pass interprets: everything about a model that its weights do not say.
/// Read from config.json; whatever would change the answer and is not understood is refused by
/// name.
struct Architecture {
  std::string name;  ///< "EmoForCausalLM", "OlmoeForCausalLM"
  std::int32_t vocab_size = 0;
  std::int32_t hidden_size = 0;
  std::int32_t num_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
  std::int32_t max_positions = 0;
  float rms_norm_eps = 1e-6f;
  float attention_scale = 0;  ///< head_dim^-0.5
  float clip_qkv = 0;         ///< clamp q, k and v to [-clip, clip]; 0 = no clipping
  QkNorm qk_norm = QkNorm::kNone;
  RopeDescription rope;
  bool tie_embeddings = false;
  DType weights_dtype =
      DType::kF32;  ///< what config.json calls torch_dtype / dtype; information only
  std::vector<std::int32_t> eos_ids;
  std::vector<LayerDescription> layers;
  /// True when pruning_metadata.json says that experts were physically removed (their gate rows are
  /// gone, so masked mass is not defined).
  bool physically_pruned = false;
  std::string attention_norm_name;  ///< "pre_attention_layernorm" (EMO), "input_layernorm"
  std::string ffn_norm_name;  ///< "pre_feedforward_layernorm" (EMO), "post_attention_layernorm"

  std::int32_t num_layers() const { return static_cast<std::int32_t>(layers.size()); }
  std::int32_t q_size() const { return num_heads * head_dim; }
  std::int32_t kv_size() const { return num_kv_heads * head_dim; }
  /// Largest num_routed of any layer.
  std::int32_t max_routed() const;
  /// Parameters of one expert of `layer` (gate, up and down projections).
  std::int64_t expert_parameters(std::int32_t layer) const;

  // Names of tensors in the checkpoint.
  std::string layer_prefix(std::int32_t layer) const;  ///< "model.layers.3."
  std::string gate_name(std::int32_t layer) const;     ///< "model.layers.3.mlp.gate.weight"
  /// Weight names of one expert: gate_proj and up_proj [intermediate, hidden], down_proj [hidden,
  /// intermediate].
  struct ExpertNames {
    std::string gate_proj, up_proj, down_proj;
  };
  ExpertNames expert_names(std::int32_t layer, std::int32_t expert) const;
};

/// One tensor that a checkpoint of this architecture must have, with its exact shape.
struct ExpectedTensor {
  std::string name;
  std::vector<std::int64_t> shape;
};
std::vector<ExpectedTensor> expected_tensors(const Architecture& architecture);

/// Interprets config.json (given as text). `pruned`: pruning_metadata.json lies beside it.
/// kInvalidArgument names the field, its value and what is understood instead.
Result<Architecture> parse_architecture(std::string_view config_json, bool pruned);

/// Adds the end-of-sequence ids of generation_config.json (given as text) to those of config.json.
/// Its other fields are a sampler's defaults and ignored.
Result<void> add_generation_config(std::string_view generation_config_json,
                                   Architecture& architecture);

}  // namespace moiety
