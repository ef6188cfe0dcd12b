// config.json -> Architecture.
#include <algorithm>
#include <array>
#include <limits>

#include "checkpoint/parse_parts.h"
#include "common/log.h"

namespace moiety {
namespace {

// Fields that say nothing about the answer: training, tools, the tokenizer, the sampler's defaults.
constexpr std::string_view kIgnored[] = {
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "aux_loss_alpha",
    "bos_token_id",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "embd_pdrop",
    "ep_size",
    "experts_implementation",
    "finetuning_task",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "label2id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "model_type",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "router_z_loss_coef",
    "sep_token_id",
    "seq_aux",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torchscript",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
};

std::string supported_families() {
  std::string text = "supported are";
  for (const Family& family : all_families()) {
    text += &family == all_families().data() ? " " : ", ";
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
  for (const Family& family : all_families()) {
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

// transformers writes the defaults of its classes, whatever the vocabulary: OLMoE's is 50279.
Result<void> add_eos_ids(ConfigFields& fields, std::string_view file, Architecture& model) {
  constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max();
  MOIETY_ASSIGN(const auto ids, fields.integers("eos_token_id", 0, kMost));
  for (std::int32_t id : ids) {
    if (id >= model.vocab_size) {
      log_warning("{}: eos_token_id {} ends no text: the vocabulary has {} tokens", file, id,
                  model.vocab_size);
    } else if (std::find(model.eos_ids.begin(), model.eos_ids.end(), id) == model.eos_ids.end()) {
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
  if (activation != "silu" && activation != "swish") {  // two names of one function
    return fields.refuse("hidden_act", "only \"silu\" is understood");
  }
  // transformers 4 writes it for GraniteMoE, which has no positions at all with another value.
  MOIETY_ASSIGN(const std::string positions, fields.text("position_embedding_type", "rope"));
  if (positions != "rope") {
    return fields.refuse("position_embedding_type",
                         "only \"rope\", rotary embeddings, is understood");
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
  MOIETY_TRY(read_ropes(fields, model));
  MOIETY_TRY(read_experts(fields, *family, model));
  MOIETY_ASSIGN(model.tie_embeddings, fields.flag("tie_word_embeddings", false));
  MOIETY_ASSIGN(model.weights_dtype, read_dtype(fields));
  MOIETY_TRY(add_eos_ids(fields, "config.json", model));
  for (std::string_view name : kIgnored) fields.ignore(name);
  MOIETY_TRY(fields.refuse_unread());
  return model;
}

Result<void> add_generation_config(std::string_view generation_config_json,
                                   Architecture& architecture) {
  MOIETY_ASSIGN(ConfigFields fields, ConfigFields::parse(generation_config_json));
  return add_eos_ids(fields, "generation_config.json", architecture);
}

}  // namespace moiety
