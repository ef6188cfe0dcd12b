#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "checkpoint/architecture.h"

namespace moiety {

/// What sets one architecture apart from the others, apart from its numbers. Internal to the
/// parser: everything that the forward pass needs is in Architecture.
struct Family {
  enum class Biases : std::uint8_t {
    kNone,
    kAttentionBias,  ///< attention_bias: q, k, v and o
    kQkvBias,        ///< qkv_bias (true unless said otherwise): q, k and v
  };
  enum class Windows : std::uint8_t {
    kNone,
    kAlways,      ///< sliding_window, where not null, in every layer
    kSwitched,    ///< the same if use_sliding_window
    kLayerTypes,  ///< if use_sliding_window, in the layers that layer_types names
  };
  enum class DenseLayers : std::uint8_t {
    kNone,
    kQwen,      ///< mlp_only_layers, decoder_sparse_step
    kDeepseek,  ///< first_k_dense_replace, moe_layer_freq
  };
  enum class SharedExperts : std::uint8_t {
    kNone,
    kEndOfList,    ///< the last of the list; num_experts and num_experts_per_tok count them
    kGatedModule,  ///< shared_expert_intermediate_size, times a sigmoid
    kFusedModule,  ///< n_shared_experts times the width of one
  };

  std::string_view name;
  std::string_view model_type;
  std::string_view attention_norm_name = "input_layernorm";
  std::string_view ffn_norm_name = "post_attention_layernorm";
  std::string_view shared_module_name = "";
  std::string_view num_experts = "num_experts";  ///< what the field is called in its own files
  std::string_view expert_width = "moe_intermediate_size";  ///< the field that has it
  std::span<const ExpertLayout> layouts;
  QkNorm qk_norm = QkNorm::kNone;
  Biases biases = Biases::kNone;
  Windows windows = Windows::kNone;
  DenseLayers dense_layers = DenseLayers::kNone;
  SharedExperts shared_experts = SharedExperts::kNone;
  bool always_normalises = false;  ///< there is no norm_topk_prob: the top-k always sum to 1
  bool clips_qkv = false;          ///< clip_qkv
  bool has_multipliers = false;  ///< embedding, residual and attention multipliers, logits_scaling
  bool has_scoring = false;      ///< scoring_func, topk_method, routed_scaling_factor
};

std::span<const Family> all_families();

}  // namespace moiety
