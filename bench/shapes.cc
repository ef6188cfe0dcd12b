#include "bench/shapes.h"

#include <array>
#include <boost/json.hpp>

#include "common/check.h"

namespace moiety::bench {
namespace {

constexpr std::array kShapes = {
    Shape{"tiny", "OLMoE of 4 layers, 16 experts: seconds", R"({
  "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "vocab_size": 4096,
  "hidden_size": 256, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
  "num_key_value_heads": 4, "num_experts": 16, "num_experts_per_tok": 4, "norm_topk_prob": false,
  "max_position_embeddings": 2048, "rope_theta": 10000.0, "rms_norm_eps": 1e-05})"},
    Shape{"olmoe-1.8b", "OLMoE of 1.78 B parameters, 0.32 B active", R"({
  "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "vocab_size": 50432,
  "hidden_size": 1024, "intermediate_size": 512, "num_hidden_layers": 16,
  "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 64,
  "num_experts_per_tok": 8, "norm_topk_prob": false, "max_position_embeddings": 4096,
  "rope_theta": 10000.0, "rms_norm_eps": 1e-05})"},
    Shape{"olmoe-7b", "OLMoE-1B-7B: 6.9 B parameters, 1.3 B active", R"({
  "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "vocab_size": 50304,
  "hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": 16,
  "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 64,
  "num_experts_per_tok": 8, "norm_topk_prob": false, "max_position_embeddings": 4096,
  "rope_theta": 10000.0, "rms_norm_eps": 1e-05})"},
    Shape{"emo-tiny", "EMO of 4 layers, 31 routed experts and a shared one", R"({
  "architectures": ["EmoForCausalLM"], "model_type": "emo", "vocab_size": 4096,
  "hidden_size": 256, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
  "num_key_value_heads": 4, "num_experts": 32, "num_shared_experts": 1, "num_experts_per_tok": 4,
  "norm_topk_prob": false, "max_position_embeddings": 2048, "rope_theta": 500000.0,
  "rms_norm_eps": 1e-06})"},
    Shape{"emo-1b-14b", "EMO: 13.6 B parameters, 127 routed experts and a shared one", R"({
  "architectures": ["EmoForCausalLM"], "model_type": "emo", "vocab_size": 100352,
  "hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": 16,
  "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 128,
  "num_shared_experts": 1, "num_experts_per_tok": 8, "norm_topk_prob": false,
  "max_position_embeddings": 4096, "rope_theta": 500000.0, "rms_norm_eps": 1e-06})"},
    Shape{"mixtral-tiny", "Mixtral of 4 layers, 8 experts", R"({
  "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 4096,
  "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
  "num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2,
  "max_position_embeddings": 2048, "sliding_window": null, "rope_theta": 1000000.0,
  "rms_norm_eps": 1e-05})"},
    Shape{"mixtral-8x7b", "Mixtral-8x7B: 46.7 B parameters, 12.9 B active", R"({
  "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 32000,
  "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
  "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
  "num_experts_per_tok": 2, "max_position_embeddings": 32768, "sliding_window": null,
  "rope_theta": 1000000.0, "rms_norm_eps": 1e-05})"},
    Shape{"qwen2-moe-tiny", "Qwen2-MoE of 4 layers, 16 experts and a gated shared one", R"({
  "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "vocab_size": 4096,
  "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 128,
  "shared_expert_intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
  "num_key_value_heads": 4, "num_experts": 16, "num_experts_per_tok": 4, "norm_topk_prob": false,
  "decoder_sparse_step": 1, "mlp_only_layers": [], "qkv_bias": true,
  "max_position_embeddings": 2048, "use_sliding_window": false, "rope_theta": 1000000.0,
  "rms_norm_eps": 1e-06})"},
    Shape{"qwen1.5-moe-a2.7b", "Qwen1.5-MoE-A2.7B: 14.3 B parameters, 2.7 B active", R"({
  "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "vocab_size": 151936,
  "hidden_size": 2048, "intermediate_size": 5632, "moe_intermediate_size": 1408,
  "shared_expert_intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
  "num_key_value_heads": 16, "num_experts": 60, "num_experts_per_tok": 4,
  "norm_topk_prob": false, "decoder_sparse_step": 1, "mlp_only_layers": [], "qkv_bias": true,
  "max_position_embeddings": 8192, "use_sliding_window": false, "rope_theta": 1000000.0,
  "rms_norm_eps": 1e-06})"},
    Shape{"qwen3-moe-tiny", "Qwen3-MoE of 4 layers, 32 experts", R"({
  "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 4096,
  "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 128,
  "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
  "num_experts": 32, "num_experts_per_tok": 4, "norm_topk_prob": true, "decoder_sparse_step": 1,
  "mlp_only_layers": [], "attention_bias": false, "max_position_embeddings": 2048,
  "use_sliding_window": false, "rope_theta": 1000000.0, "rms_norm_eps": 1e-06})"},
    Shape{"qwen3-30b-a3b", "Qwen3-30B-A3B: 30.5 B parameters, 3.3 B active", R"({
  "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 151936,
  "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
  "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
  "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": true,
  "decoder_sparse_step": 1, "mlp_only_layers": [], "attention_bias": false,
  "max_position_embeddings": 40960, "use_sliding_window": false, "rope_theta": 1000000.0,
  "rms_norm_eps": 1e-06})"},
    Shape{"deepseek-tiny", "DeepSeekMoE of 4 layers, 16 routed experts and two shared ones", R"({
  "architectures": ["DeepseekForCausalLM"], "model_type": "deepseek", "vocab_size": 4096,
  "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 128,
  "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
  "n_routed_experts": 16, "n_shared_experts": 2, "num_experts_per_tok": 4,
  "first_k_dense_replace": 1, "moe_layer_freq": 1, "norm_topk_prob": false,
  "scoring_func": "softmax", "max_position_embeddings": 2048, "rope_theta": 10000.0,
  "rms_norm_eps": 1e-06})"},
    Shape{"deepseek-moe-16b", "DeepSeekMoE 16B: 16.4 B parameters, 2.8 B active", R"({
  "architectures": ["DeepseekForCausalLM"], "model_type": "deepseek", "vocab_size": 102400,
  "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
  "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16,
  "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
  "first_k_dense_replace": 1, "moe_layer_freq": 1, "norm_topk_prob": false,
  "scoring_func": "softmax", "max_position_embeddings": 4096, "rope_theta": 10000.0,
  "rms_norm_eps": 1e-06})"},
    Shape{"granite-tiny", "Granite-MoE of 4 layers, 16 experts, tied embeddings", R"({
  "architectures": ["GraniteMoeForCausalLM"], "model_type": "granitemoe", "vocab_size": 4096,
  "hidden_size": 256, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
  "num_key_value_heads": 2, "num_local_experts": 16, "num_experts_per_tok": 4,
  "attention_bias": false, "attention_multiplier": 0.015625, "embedding_multiplier": 12.0,
  "logits_scaling": 6.0, "residual_multiplier": 0.22, "tie_word_embeddings": true,
  "max_position_embeddings": 2048, "rope_theta": 10000.0, "rms_norm_eps": 1e-06})"},
    Shape{"granite-3b-a800m", "Granite-3.0-3B-A800M: 3.3 B parameters, 0.8 B active", R"({
  "architectures": ["GraniteMoeForCausalLM"], "model_type": "granitemoe", "vocab_size": 49155,
  "hidden_size": 1536, "intermediate_size": 512, "num_hidden_layers": 32,
  "num_attention_heads": 24, "num_key_value_heads": 8, "num_local_experts": 40,
  "num_experts_per_tok": 8, "attention_bias": false, "attention_multiplier": 0.015625,
  "embedding_multiplier": 12.0, "logits_scaling": 6.0, "residual_multiplier": 0.22,
  "tie_word_embeddings": true, "max_position_embeddings": 4096, "rope_theta": 10000.0,
  "rms_norm_eps": 1e-06})"},
};

}  // namespace

std::span<const Shape> all_shapes() { return kShapes; }

Result<Shape> find_shape(std::string_view name) {
  std::string names;
  for (const Shape& shape : kShapes) {
    if (shape.name == name) return shape;
    names += names.empty() ? "" : ", ";
    names += shape.name;
  }
  return fail(ErrorCode::kNotFound,
              "there is no shape '" + std::string(name) + "'; there are " + names);
}

std::string_view torch_name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "float32";
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
    default:
      break;
  }
  MOIETY_CHECK(false, "weights are F32, BF16 or F16");
  return "";
}

std::string shape_config(const Shape& shape, std::string_view dtype, std::int32_t num_layers) {
  boost::json::object config =
      boost::json::parse({shape.config_json.data(), shape.config_json.size()}).get_object();
  if (num_layers > 0) config["num_hidden_layers"] = num_layers;
  if (!config.contains("tie_word_embeddings")) config["tie_word_embeddings"] = false;
  config["hidden_act"] = "silu";
  config["eos_token_id"] = 0;
  config["torch_dtype"] = boost::json::string_view(dtype.data(), dtype.size());
  std::string text = "{\n";  // one field a line: people read it
  for (const auto& [key, value] : config) {
    if (text.size() > 2) text += ",\n";
    text += "  " + boost::json::serialize(boost::json::value(key)) + ": ";
    text += boost::json::serialize(value);
  }
  return text + "\n}\n";
}

}  // namespace moiety::bench
