#include "checkpoint/families.h"

namespace moiety {
namespace {

constexpr ExpertLayout kMlpExperts = {"mlp.gate.weight", "mlp.experts.{}.gate_proj.weight",
                                      "mlp.experts.{}.up_proj.weight",
                                      "mlp.experts.{}.down_proj.weight"};
// As transformers 5 holds experts in memory, and saves them when asked not to convert them back.
constexpr ExpertLayout kFusedMlpExperts = {"mlp.gate.weight", "mlp.experts.gate_up_proj",
                                           "mlp.experts.gate_up_proj", "mlp.experts.down_proj",
                                           true};

constexpr ExpertLayout kOwnCode[] = {kMlpExperts};
constexpr ExpertLayout kTransformers[] = {kMlpExperts, kFusedMlpExperts};
constexpr ExpertLayout kMixtral[] = {
    {"block_sparse_moe.gate.weight", "block_sparse_moe.experts.{}.w1.weight",
     "block_sparse_moe.experts.{}.w3.weight", "block_sparse_moe.experts.{}.w2.weight"},
    kFusedMlpExperts};
constexpr ExpertLayout kGranite[] = {
    {"block_sparse_moe.router.layer.weight", "block_sparse_moe.input_linear.weight",
     "block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight", true},
    {"block_sparse_moe.router.weight", "block_sparse_moe.experts.gate_up_proj",
     "block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj", true}};

constexpr Family kFamilies[] = {
    {.name = "EmoForCausalLM",
     .model_type = "emo",
     .attention_norm_name = "pre_attention_layernorm",
     .ffn_norm_name = "pre_feedforward_layernorm",
     .expert_width = "intermediate_size",
     .layouts = kOwnCode,
     .shared_experts = Family::SharedExperts::kEndOfList},
    {.name = "OlmoeForCausalLM",
     .model_type = "olmoe",
     .expert_width = "intermediate_size",
     .layouts = kTransformers,
     .qk_norm = QkNorm::kWholeProjection,
     .biases = Family::Biases::kAttentionBias,
     .clips_qkv = true},
    {.name = "MixtralForCausalLM",
     .model_type = "mixtral",
     .num_experts = "num_local_experts",
     .expert_width = "intermediate_size",
     .layouts = kMixtral,
     .windows = Family::Windows::kAlways,
     .always_normalises = true},
    {.name = "Qwen2MoeForCausalLM",
     .model_type = "qwen2_moe",
     .shared_module_name = "mlp.shared_expert",
     .layouts = kTransformers,
     .biases = Family::Biases::kQkvBias,
     .windows = Family::Windows::kLayerTypes,
     .dense_layers = Family::DenseLayers::kQwen,
     .shared_experts = Family::SharedExperts::kGatedModule},
    {.name = "Qwen3MoeForCausalLM",
     .model_type = "qwen3_moe",
     .layouts = kTransformers,
     .qk_norm = QkNorm::kPerHead,
     .biases = Family::Biases::kAttentionBias,
     .windows = Family::Windows::kSwitched,
     .dense_layers = Family::DenseLayers::kQwen},
    {.name = "DeepseekForCausalLM",
     .model_type = "deepseek",
     .shared_module_name = "mlp.shared_experts",
     .num_experts = "n_routed_experts",
     .layouts = kOwnCode,
     .biases = Family::Biases::kAttentionBias,
     .dense_layers = Family::DenseLayers::kDeepseek,
     .shared_experts = Family::SharedExperts::kFusedModule,
     .has_scoring = true},
    {.name = "GraniteMoeForCausalLM",
     .model_type = "granitemoe",
     .num_experts = "num_local_experts",
     .expert_width = "intermediate_size",
     .layouts = kGranite,
     .biases = Family::Biases::kAttentionBias,
     .always_normalises = true,
     .has_multipliers = true},
};

}  // namespace

std::span<const Family> all_families() { return kFamilies; }

}  // namespace moiety
