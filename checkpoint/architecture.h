#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/dtype.h"
#include "common/result.h"

namespace moiety {

/// Rotary position embedding: element i of a head's first half and element i of its second half are
/// rotated by position * frequencies[i]; the result is multiplied by `attention_factor`.
struct RopeDescription {
  double theta = 10000.0;          ///< information only: `frequencies` follow from it
  std::vector<float> frequencies;  ///< [head_dim / 2] radians per position, scaling included
  float attention_factor = 1;      ///< not 1 for yarn
};

enum class QkNorm : std::uint8_t {
  kNone,
  kWholeProjection,  ///< RMSNorm over the whole q (k) projection, before the split into heads
                     ///< (OLMoE)
  kPerHead,          ///< RMSNorm over each head of q (k), one weight for all heads (Qwen3)
};

/// The mixture-of-experts part of one layer.
///
/// Experts are numbered as in the checkpoint's expert list: routed ones are [0, num_routed), shared
/// ones that are part of that list (EMO) follow at [num_routed, num_routed + num_shared).
/// The gate's weight has `gate_rows` rows, of which only the first num_routed take part.
///
/// A token's weights are the softmax over all routed logits at its top_k, divided by their sum when
/// `norm_topk` (which makes them the softmax over the top_k alone), times `routed_scale`.
struct MoeDescription {
  std::int32_t num_routed = 0;  ///< 0: the layer is dense and has none of all this
  std::int32_t num_shared = 0;
  std::int32_t top_k = 0;  ///< routed experts per token (shared ones not counted), <= num_routed
  std::int32_t gate_rows = 0;     ///< num_routed + num_shared for EMO, num_routed for others
  std::int32_t intermediate = 0;  ///< width of one expert
  bool norm_topk = false;
  float routed_scale = 1;
  /// Width of the shared experts that are one module of their own, outside the expert list (Qwen2,
  /// DeepSeek); 0 = there is none. They are not counted in num_shared.
  std::int32_t shared_module_width = 0;
  bool shared_module_gated =
      false;  ///< its output is multiplied by sigmoid(shared_expert_gate . h)
};

struct LayerDescription {
  MoeDescription moe;
  std::int32_t dense_width = 0;  ///< width of the feed-forward network of a dense layer; else 0
  std::int32_t window = 0;       ///< attends to (position - window, position]; 0 = [0, position]
  std::int32_t rope = 0;         ///< index into Architecture::ropes

  bool is_dense() const { return moe.num_routed == 0; }
};

/// A form in which checkpoints store the experts and the gate of a layer. Names are relative to the
/// layer's prefix.
///
/// One tensor per expert and projection: "{}" stands for the expert's number. Fused: `gate_proj`
/// and `up_proj` name one tensor [experts, 2 * intermediate, hidden] with the rows of gate before
/// those of up, `down_proj` a tensor [experts, hidden, intermediate].
struct ExpertLayout {
  std::string_view gate;
  std::string_view gate_proj, up_proj, down_proj;
  bool fused = false;
};

/// A matrix [rows, columns] that is all of a tensor, or one run of its rows: of a tensor of three
/// dimensions, all but the last counted as one.
struct MatrixSource {
  std::string tensor;
  std::int64_t first_row = 0;
  std::int32_t rows = 0;
  std::int32_t columns = 0;
};

/// gate_proj and up_proj [width, hidden], down_proj [hidden, width].
struct FeedForwardSource {
  MatrixSource gate_proj, up_proj, down_proj;
};

/// What one forward pass interprets: everything about a model that its weights do not say.
/// Read from config.json; whatever would change the answer and is not understood is refused by
/// name.
struct Architecture {
  std::string name;  ///< "EmoForCausalLM", ...
  std::int32_t vocab_size = 0;
  std::int32_t hidden_size = 0;
  std::int32_t num_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
  std::int32_t max_positions = 0;
  float rms_norm_eps = 1e-6f;
  float attention_scale = 0;  ///< of q . k before the softmax; head_dim^-0.5 for most
  float clip_qkv = 0;         ///< clamp q, k and v to [-clip, clip]; 0 = no clipping
  QkNorm qk_norm = QkNorm::kNone;
  bool qkv_bias = false;
  bool o_bias = false;
  float embedding_multiplier = 1;  ///< of the embedding's rows
  float residual_multiplier = 1;   ///< of what attention and feed-forward add to the residual
  float logits_divisor = 1;
  std::vector<RopeDescription> ropes;  ///< at least one
  bool tie_embeddings = false;
  DType weights_dtype =
      DType::kF32;  ///< what config.json calls torch_dtype / dtype; information only
  std::vector<std::int32_t> eos_ids;
  std::vector<LayerDescription> layers;  ///< at least one of them has experts
  /// True when pruning_metadata.json says that experts were physically removed (their gate rows are
  /// gone, so masked mass is not defined).
  bool physically_pruned = false;
  std::string attention_norm_name;  ///< "pre_attention_layernorm" (EMO), "input_layernorm"
  std::string ffn_norm_name;  ///< "pre_feedforward_layernorm" (EMO), "post_attention_layernorm"
  std::string_view shared_module_name;  ///< "mlp.shared_expert" (Qwen2), ...; empty without one
  /// The forms in which its experts may be stored, usual one first, and the one that is used here;
  /// Checkpoint::open finds out which.
  std::vector<ExpertLayout> layouts;
  std::size_t layout = 0;

  std::int32_t num_layers() const { return static_cast<std::int32_t>(layers.size()); }
  std::int32_t num_moe_layers() const;
  std::int32_t q_size() const { return num_heads * head_dim; }
  std::int32_t kv_size() const { return num_kv_heads * head_dim; }
  /// Largest num_routed of any layer.
  std::int32_t max_routed() const;
  /// Parameters of one expert of `layer` (gate, up and down projections); 0 for a dense layer.
  std::int64_t expert_parameters(std::int32_t layer) const;

  // Where tensors lie in the checkpoint.
  std::string layer_prefix(std::int32_t layer) const;  ///< "model.layers.3."
  std::string gate_name(std::int32_t layer) const;     ///< "model.layers.3.mlp.gate.weight"
  /// One expert of the list.
  FeedForwardSource expert_source(std::int32_t layer, std::int32_t expert) const;
  /// The shared experts' module.
  FeedForwardSource shared_module_source(std::int32_t layer) const;
  std::string shared_gate_name(std::int32_t layer) const;  ///< [1, hidden], where it is gated
  /// The feed-forward network of a dense layer.
  FeedForwardSource dense_source(std::int32_t layer) const;
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
