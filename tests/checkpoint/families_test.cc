// What each architecture's config.json says, and what of it is refused.
#include "checkpoint/architecture.h"
#include "tests/checkpoint/config_testing.h"

namespace moiety {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::int32_t> moe_layers(const Architecture& model) {
  std::vector<std::int32_t> layers;
  for (std::int32_t i = 0; i < model.num_layers(); ++i) {
    if (!model.layers[static_cast<std::size_t>(i)].is_dense()) layers.push_back(i);
  }
  return layers;
}

std::vector<std::int32_t> windows(const Architecture& model) {
  std::vector<std::int32_t> result;
  for (const LayerDescription& layer : model.layers) result.push_back(layer.window);
  return result;
}

const ExpectedTensor* find(const std::vector<ExpectedTensor>& tensors, std::string_view name) {
  for (const ExpectedTensor& tensor : tensors) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

TEST(Mixtral, IsRead) {
  const Architecture model = parse(config_of("mixtral"));
  EXPECT_EQ(model.name, "MixtralForCausalLM");
  EXPECT_EQ(model.num_kv_heads, 2);
  EXPECT_EQ(model.head_dim, 16);  // "head_dim": null
  EXPECT_EQ(model.qk_norm, QkNorm::kNone);
  EXPECT_FALSE(model.qkv_bias || model.o_bias);
  EXPECT_EQ(model.weights_dtype, DType::kF16);
  EXPECT_THAT(windows(model), ElementsAre(0, 0, 0));
  const MoeDescription& moe = model.layers[1].moe;
  EXPECT_EQ(moe.num_routed, 8);
  EXPECT_EQ(moe.top_k, 2);
  EXPECT_TRUE(moe.norm_topk);  // there is no field for it
  EXPECT_EQ(moe.routed_scale, 1);
  EXPECT_EQ(moe.intermediate, 96);
  EXPECT_EQ(moe.shared_module_width, 0);
  EXPECT_EQ(model.gate_name(1), "model.layers.1.block_sparse_moe.gate.weight");
  const FeedForwardSource source = model.expert_source(1, 7);
  EXPECT_EQ(source.gate_proj.tensor, "model.layers.1.block_sparse_moe.experts.7.w1.weight");
  EXPECT_EQ(source.up_proj.tensor, "model.layers.1.block_sparse_moe.experts.7.w3.weight");
  EXPECT_EQ(source.down_proj.tensor, "model.layers.1.block_sparse_moe.experts.7.w2.weight");
  EXPECT_EQ(source.down_proj.first_row, 0);
}

TEST(Mixtral, AWindowHoldsForEveryLayer) {
  const std::string config =
      replaced(config_of("mixtral"), "\"sliding_window\": null", "\"sliding_window\": 16");
  EXPECT_THAT(windows(parse(config)), ElementsAre(16, 16, 16));
  const std::string sliding = R"("layer_types": ["sliding_attention", "sliding_attention",
                                                 "sliding_attention"])";
  EXPECT_THAT(windows(parse(with(config, sliding))), ElementsAre(16, 16, 16));
  expect_refused(with(config, R"("layer_types": ["sliding_attention", "full_attention",
                                                 "sliding_attention"])"),
                 "layer_types", "[\"sliding_attention\"");
  expect_refused(with(config_of("mixtral"), sliding), "layer_types", "[\"sliding_attention\"");
}

TEST(Mixtral, FusedExpertsAreRunsOfRows) {
  Architecture model = parse(config_of("mixtral"));
  ASSERT_EQ(model.layouts.size(), 2u);
  model.layout = 1;
  EXPECT_EQ(model.gate_name(2), "model.layers.2.mlp.gate.weight");
  const FeedForwardSource source = model.expert_source(2, 3);
  EXPECT_EQ(source.gate_proj.tensor, "model.layers.2.mlp.experts.gate_up_proj");
  EXPECT_EQ(source.gate_proj.first_row, 3 * 2 * 96);
  EXPECT_EQ(source.up_proj.tensor, source.gate_proj.tensor);
  EXPECT_EQ(source.up_proj.first_row, 3 * 2 * 96 + 96);
  EXPECT_EQ(source.up_proj.rows, 96);
  EXPECT_EQ(source.up_proj.columns, 64);
  EXPECT_EQ(source.down_proj.tensor, "model.layers.2.mlp.experts.down_proj");
  EXPECT_EQ(source.down_proj.first_row, 3 * 64);
  const auto tensors = expected_tensors(model);
  ASSERT_NE(find(tensors, source.gate_proj.tensor), nullptr);
  EXPECT_THAT(find(tensors, source.gate_proj.tensor)->shape, ElementsAre(8, 192, 64));
  EXPECT_THAT(find(tensors, source.down_proj.tensor)->shape, ElementsAre(8, 64, 96));
}

TEST(Qwen2Moe, IsRead) {
  const Architecture model = parse(config_of("qwen2_moe"));
  EXPECT_TRUE(model.qkv_bias);
  EXPECT_FALSE(model.o_bias);
  EXPECT_THAT(moe_layers(model), ElementsAre(1, 2));
  EXPECT_EQ(model.num_moe_layers(), 2);
  EXPECT_EQ(model.layers[0].dense_width, 112);
  EXPECT_EQ(model.layers[0].moe.top_k, 0);
  EXPECT_EQ(model.expert_parameters(0), 0);
  const MoeDescription& moe = model.layers[1].moe;
  EXPECT_EQ(moe.num_routed, 12);
  EXPECT_EQ(moe.num_shared, 0);
  EXPECT_EQ(moe.intermediate, 24);
  EXPECT_FALSE(moe.norm_topk);
  EXPECT_EQ(moe.shared_module_width, 80);
  EXPECT_TRUE(moe.shared_module_gated);
  EXPECT_EQ(model.shared_gate_name(1), "model.layers.1.mlp.shared_expert_gate.weight");
  EXPECT_EQ(model.shared_module_source(1).up_proj.tensor,
            "model.layers.1.mlp.shared_expert.up_proj.weight");
  EXPECT_EQ(model.dense_source(0).down_proj.tensor, "model.layers.0.mlp.down_proj.weight");
  const auto tensors = expected_tensors(model);
  EXPECT_EQ(tensors.size(), 3u + 3 * 9 + 3 + 2 * (1 + 12 * 3 + 3 + 1));
  EXPECT_THAT(find(tensors, "model.layers.0.mlp.gate_proj.weight")->shape, ElementsAre(112, 64));
  EXPECT_THAT(find(tensors, "model.layers.2.self_attn.k_proj.bias")->shape, ElementsAre(32));
  EXPECT_EQ(find(tensors, "model.layers.2.self_attn.o_proj.bias"), nullptr);
  EXPECT_THAT(find(tensors, model.shared_gate_name(2))->shape, ElementsAre(1, 64));
}

TEST(Qwen2Moe, DenseLayersByStepAndByList) {
  const std::string config = config_of("small/qwen2_moe-window");  // four layers
  const auto layers = [&](const std::string& step, const std::string& list) {
    return moe_layers(parse(
        replaced(replaced(config, "\"decoder_sparse_step\": 1", "\"decoder_sparse_step\": " + step),
                 "\"mlp_only_layers\": []", "\"mlp_only_layers\": " + list)));
  };
  EXPECT_THAT(layers("1", "[]"), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(layers("2", "[]"), ElementsAre(1, 3));
  EXPECT_THAT(layers("3", "null"), ElementsAre(2));
  EXPECT_THAT(layers("1", "[3, 0]"), ElementsAre(1, 2));
  EXPECT_THAT(layers("2", "[1]"), ElementsAre(3));
  expect_refused(replaced(config, "\"mlp_only_layers\": []", "\"mlp_only_layers\": [0, 1, 2, 3]"),
                 "mlp_only_layers", "[0,1,2,3]");
  expect_refused(replaced(config, "\"decoder_sparse_step\": 1", "\"decoder_sparse_step\": 5"),
                 "mlp_only_layers", "[]");
  expect_refused(replaced(config, "\"decoder_sparse_step\": 1", "\"decoder_sparse_step\": 0"),
                 "decoder_sparse_step", "0");
}

TEST(Qwen2Moe, WindowsOfLayerTypesOrTheirDefault) {
  const std::string config = config_of("small/qwen2_moe-window");
  EXPECT_THAT(windows(parse(config)), ElementsAre(9, 0, 9, 0));
  const std::string untyped = replaced(config, "\"layer_types\"", "\"_layer_types\"");
  std::string log = logged([&] { EXPECT_THAT(windows(parse(untyped)), ElementsAre(9, 0, 9, 0)); });
  EXPECT_THAT(log, AllOf(HasSubstr("use_sliding_window"), HasSubstr("layer_types is missing"),
                         HasSubstr("max_window_layers")));
  log = logged([&] { EXPECT_THAT(windows(parse(config)), ElementsAre(9, 0, 9, 0)); });
  EXPECT_EQ(log, "");
  EXPECT_THAT(
      windows(parse(replaced(untyped, "\"max_window_layers\": 3", "\"max_window_layers\": 2"))),
      ElementsAre(9, 0, 0, 0));
  EXPECT_THAT(windows(parse(replaced(untyped, "\"use_sliding_window\": true",
                                     "\"use_sliding_window\": false"))),
              ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(windows(parse(with(untyped, R"("layer_types": ["full_attention", "full_attention",
                                          "sliding_attention", "sliding_attention"])"))),
              ElementsAre(0, 0, 9, 9));
  expect_refused(with(untyped, R"("layer_types": ["full_attention"])"), "layer_types",
                 "[\"full_attention\"]");
  expect_refused(with(untyped, R"("layer_types": ["full_attention", "full_attention",
                      "full_attention", "linear_attention"])"),
                 "layer_types", "[");
  expect_refused(replaced(config, "\"use_sliding_window\": true", "\"use_sliding_window\": false"),
                 "layer_types", "[");
  expect_refused(replaced(config, "\"sliding_window\": 9", "\"sliding_window\": null"),
                 "sliding_window", "null");
  expect_refused(replaced(config, "\"sliding_window\": 9", "\"sliding_window\": 0"),
                 "sliding_window", "0");
}

TEST(Qwen3Moe, IsRead) {
  const Architecture model = parse(config_of("qwen3_moe"));
  EXPECT_EQ(model.head_dim, 32);
  EXPECT_EQ(model.q_size(), 128);
  EXPECT_EQ(model.qk_norm, QkNorm::kPerHead);
  EXPECT_FALSE(model.qkv_bias || model.o_bias);
  EXPECT_TRUE(model.layers[0].moe.norm_topk);
  EXPECT_EQ(model.layers[0].moe.intermediate, 24);
  const auto tensors = expected_tensors(model);
  EXPECT_THAT(find(tensors, "model.layers.0.self_attn.q_norm.weight")->shape, ElementsAre(32));
  EXPECT_THAT(find(tensors, "model.layers.0.self_attn.k_norm.weight")->shape, ElementsAre(32));
  EXPECT_THAT(find(tensors, "model.layers.0.self_attn.o_proj.weight")->shape, ElementsAre(64, 128));
}

TEST(Qwen3Moe, BiasesDenseLayersTiedHeadAndWindow) {
  const Architecture mixed = parse(config_of("small/qwen3_moe-mixed"));
  EXPECT_TRUE(mixed.qkv_bias && mixed.o_bias);
  EXPECT_TRUE(mixed.tie_embeddings);
  EXPECT_THAT(moe_layers(mixed), ElementsAre(0, 3));
  EXPECT_EQ(mixed.layers[1].dense_width, 40);
  EXPECT_EQ(find(expected_tensors(mixed), "lm_head.weight"), nullptr);
  EXPECT_NE(find(expected_tensors(mixed), "model.layers.3.self_attn.o_proj.bias"), nullptr);
  const Architecture window = parse(config_of("small/qwen3_moe-window"));
  EXPECT_THAT(windows(window), ElementsAre(20, 20));
}

TEST(Deepseek, IsRead) {
  const Architecture model = parse(config_of("deepseek"));
  EXPECT_EQ(model.name, "DeepseekForCausalLM");
  EXPECT_THAT(moe_layers(model), ElementsAre(1, 2));
  EXPECT_EQ(model.layers[0].dense_width, 96);
  const MoeDescription& moe = model.layers[1].moe;
  EXPECT_EQ(moe.num_routed, 12);
  EXPECT_EQ(moe.top_k, 3);
  EXPECT_FALSE(moe.norm_topk);
  EXPECT_EQ(moe.shared_module_width, 48);
  EXPECT_FALSE(moe.shared_module_gated);
  EXPECT_EQ(model.shared_module_source(1).gate_proj.tensor,
            "model.layers.1.mlp.shared_experts.gate_proj.weight");
}

TEST(Deepseek, FrequencyScaleBiasAndNoSharedExperts) {
  const Architecture model = parse(config_of("small/deepseek-norm"));
  EXPECT_THAT(moe_layers(model), ElementsAre(2, 4));
  EXPECT_TRUE(model.layers[2].moe.norm_topk);
  EXPECT_EQ(model.layers[2].moe.routed_scale, 1.5f);
  EXPECT_TRUE(model.qkv_bias && model.o_bias);
  EXPECT_EQ(parse(config_of("small/deepseek-plain")).layers[1].moe.shared_module_width, 0);
  // Its own code divides by the sum only where there is more than one expert.
  const std::string one = replaced(config_of("small/deepseek-norm"), "\"num_experts_per_tok\": 3",
                                   "\"num_experts_per_tok\": 1");
  EXPECT_FALSE(parse(one).layers[2].moe.norm_topk);
}

TEST(GraniteMoe, IsRead) {
  const Architecture model = parse(config_of("granitemoe"));
  EXPECT_EQ(model.attention_scale, 0.2f);
  EXPECT_EQ(model.embedding_multiplier, 3.0f);
  EXPECT_EQ(model.residual_multiplier, 0.6f);
  EXPECT_EQ(model.logits_divisor, 2.0f);
  EXPECT_TRUE(model.tie_embeddings);
  EXPECT_TRUE(model.layers[0].moe.norm_topk);  // the softmax runs over the top-k
  EXPECT_EQ(model.layers[0].moe.num_routed, 10);
  EXPECT_EQ(model.gate_name(0), "model.layers.0.block_sparse_moe.router.layer.weight");
  const auto tensors = expected_tensors(model);
  EXPECT_THAT(find(tensors, "model.layers.0.block_sparse_moe.input_linear.weight")->shape,
              ElementsAre(10, 64, 64));
  EXPECT_THAT(find(tensors, "model.layers.0.block_sparse_moe.output_linear.weight")->shape,
              ElementsAre(10, 64, 32));
  EXPECT_EQ(tensors.size(), 2u + 3 * (6 + 3));
}

TEST(GraniteMoe, AMissingMultiplierIsOne) {
  std::string config = config_of("granitemoe");
  for (const char* field :
       {"attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"}) {
    config = without(config, field);
  }
  const Architecture model = parse(config);
  EXPECT_EQ(model.attention_scale, 1);  // and not head_dim^-0.5
  EXPECT_EQ(model.embedding_multiplier, 1);
  EXPECT_EQ(model.residual_multiplier, 1);
  EXPECT_EQ(model.logits_divisor, 1);
}

TEST(Families, NamesOfTheNumberOfExperts) {
  for (const char* fixture : {"emo", "olmoe", "mixtral", "qwen2_moe", "qwen3_moe", "granitemoe"}) {
    const std::string config = config_of(fixture);
    const bool is_local = config.find("num_local_experts") != config.npos;
    const char* here = is_local ? "\"num_local_experts\"" : "\"num_experts\"";
    const char* other = is_local ? "\"num_experts\"" : "\"num_local_experts\"";
    const std::int32_t count = parse(config).max_routed();
    EXPECT_EQ(parse(replaced(config, here, other)).max_routed(), count) << fixture;
  }
}

TEST(Families, NameWhatIsMissing) {
  const std::pair<const char*, const char*> fields[] = {
      {"deepseek", "n_routed_experts"},     {"deepseek", "moe_intermediate_size"},
      {"mixtral", "num_local_experts"},     {"mixtral", "intermediate_size"},
      {"qwen2_moe", "num_experts"},         {"qwen2_moe", "shared_expert_intermediate_size"},
      {"granitemoe", "num_local_experts"},  {"granitemoe", "num_experts_per_tok"},
      {"qwen3_moe", "num_attention_heads"}, {"qwen3_moe", "moe_intermediate_size"}};
  for (const auto& [fixture, field] : fields) {
    expect_refused(without(config_of(fixture), field), std::string(field) + " is missing", "");
  }
}

TEST(Families, RefuseWhatWouldChangeTheAnswer) {
  struct Case {
    const char *fixture, *fields, *field, *value;
  };
  const Case cases[] = {
      {"mixtral", R"("attention_bias": true)", "attention_bias", "true"},
      {"mixtral", R"("num_experts": 9)", "num_experts", "9"},
      {"mixtral", R"("qkv_bias": true)", "qkv_bias", "true"},
      {"mixtral", R"("n_shared_experts": 1)", "n_shared_experts", "1"},
      {"mixtral", R"("quantization_config": {"bits": 4})", "quantization_config", "{\"bits\":4}"},
      {"qwen2_moe", R"("attention_bias": true)", "attention_bias", "true"},
      {"qwen2_moe", R"("hidden_act_2": "gelu")", "hidden_act_2", "\"gelu\""},
      {"qwen3_moe", R"("qkv_bias": true)", "qkv_bias", "true"},
      {"qwen3_moe", R"("clip_qkv": 5.0)", "clip_qkv", "5.0"},
      {"qwen3_moe", R"("sliding_window_pattern": 6)", "sliding_window_pattern", "6"},
      {"qwen3_moe", R"("routed_scaling_factor": 2.5)", "routed_scaling_factor", "2.5"},
      {"olmoe", R"("sliding_window": 128)", "sliding_window", "128"},
      {"granitemoe", R"("shared_intermediate_size": 64)", "shared_intermediate_size", "64"},
      {"granitemoe", R"("sliding_window": 128)", "sliding_window", "128"},
      {"deepseek", R"("topk_method": "group_limited_greedy")", "topk_method", "\"group_limited"},
      {"deepseek", R"("n_group": 4)", "n_group", "4"},
      {"deepseek", R"("topk_group": 2)", "topk_group", "2"},
      {"deepseek", R"("kv_lora_rank": 512)", "kv_lora_rank", "512"},
      {"deepseek", R"("embedding_multiplier": 2.0)", "embedding_multiplier", "2.0"},
      {"deepseek", R"("mlp_only_layers": [1])", "mlp_only_layers", "[1]"},
  };
  for (const Case& c : cases)
    expect_refused(with(config_of(c.fixture), c.fields), c.field, c.value);

  struct Change {
    const char *fixture, *from, *to, *field, *value;
  };
  const Change changes[] = {
      {"mixtral", "\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"", "hidden_act", "\"gelu\""},
      {"mixtral", "\"head_dim\": null", "\"head_dim\": 15", "head_dim", "15"},
      {"mixtral", "\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 9", "num_experts_per_tok",
       "9"},
      {"qwen2_moe", "\"shared_expert_intermediate_size\": 80",
       "\"shared_expert_intermediate_size\": 0", "shared_expert_intermediate_size", "0"},
      {"qwen2_moe", "\"intermediate_size\": 112", "\"intermediate_size\": 0", "intermediate_size",
       "0"},
      {"qwen2_moe", "\"num_experts\": 12", "\"num_experts\": 0", "num_experts", "0"},
      {"deepseek", "\"scoring_func\": \"softmax\"", "\"scoring_func\": \"sigmoid\"", "scoring_func",
       "\"sigmoid\""},
      {"deepseek", "\"first_k_dense_replace\": 1", "\"first_k_dense_replace\": 3",
       "first_k_dense_replace", "3"},
      {"deepseek", "\"moe_layer_freq\": 1", "\"moe_layer_freq\": 0", "moe_layer_freq", "0"},
      {"deepseek", "\"n_shared_experts\": 2", "\"n_shared_experts\": -1", "n_shared_experts", "-1"},
      {"deepseek", "\"routed_scaling_factor\": 1.0", "\"routed_scaling_factor\": 0",
       "routed_scaling_factor", "0"},
      {"granitemoe", "\"logits_scaling\": 2.0", "\"logits_scaling\": 0", "logits_scaling", "0"},
      {"granitemoe", "\"residual_multiplier\": 0.6", "\"residual_multiplier\": \"x\"",
       "residual_multiplier", "\"x\""},
      {"granitemoe", "\"tie_word_embeddings\": true", "\"tie_word_embeddings\": 1",
       "tie_word_embeddings", "1"},
      {"qwen3_moe", "\"hidden_act\"", "\"use_qk_norm\": false, \"hidden_act\"", "use_qk_norm",
       "false"},
      {"mixtral", "\"hidden_act\"", "\"use_qk_norm\": true, \"hidden_act\"", "use_qk_norm", "true"},
  };
  for (const Change& c : changes) {
    expect_refused(replaced(config_of(c.fixture), c.from, c.to), c.field, c.value);
  }
}

TEST(Families, AcceptWhatProgramsWriteBesides) {
  for (const char* fixture :
       {"emo", "olmoe", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek", "granitemoe"}) {
    parse(with(config_of(fixture), R"("_name_or_path": "x", "attn_implementation": "sdpa",
        "auto_map": {"AutoConfig": "c.C"}, "ep_size": 1, "pretraining_tp": 1, "is_decoder": false,
        "num_beams": 1, "top_k": 50, "chunk_size_feed_forward": 0, "id2label": {"0": "a"},
        "initializer_factor": 0, "pruned_heads": {}, "quantization_config": null)"));
  }
  EXPECT_TRUE(parse_architecture(replaced(config_of("mixtral"), "\"silu\"", "\"swish\""), false));
  parse(with(config_of("qwen3_moe"), R"("use_qk_norm": true, "shared_expert_intermediate_size": 0,
      "unsloth_fixed": true, "unsloth_version": "2026.1")"));
}

// As transformers 4.57.1 and 5.24.0 save small models of each class, sizes apart all of them
// defaults: the end of text of OLMoE is outside of its vocabulary then.
TEST(Families, AcceptWhatTransformersWrites) {
  for (const char* name : {"olmoe", "mixtral", "qwen2_moe", "qwen3_moe", "granitemoe"}) {
    for (const char* version : {"-4.json", "-5.json"}) {
      const std::string file = std::string(name) + version;
      SCOPED_TRACE(file);
      const std::string config =
          read_text(std::filesystem::path(MOIETY_SOURCE_DIR) / "tests/checkpoint/configs" / file);
      const Architecture model = parse(config);
      EXPECT_THAT(config, HasSubstr("\"" + model.name + "\""));
      EXPECT_EQ(model.num_moe_layers(), 2);
      EXPECT_EQ(model.layers[0].moe.num_routed, 4);
    }
  }
}

TEST(GraniteMoe, KnowsRotaryEmbeddingsAlone) {
  const auto config = [](const std::string& value) {
    return with(config_of("granitemoe"), spelled("position_embedding_type", value));
  };
  parse(config("\"rope\""));
  parse(config("null"));
  for (const char* other : {"\"nope\"", "\"absolute\"", "\"\"", "1"}) {
    expect_refused(config(other), "position_embedding_type", other);
  }
}

TEST(Families, AreRecognisedByModelTypeAlone) {
  for (const char* fixture : {"mixtral", "qwen2_moe", "qwen3_moe", "deepseek", "granitemoe"}) {
    const std::string config = config_of(fixture);
    EXPECT_EQ(parse(replaced(config, "\"architectures\"", "\"_architectures\"")).name,
              parse(config).name);
  }
  expect_error(
      parse_architecture(replaced(config_of("mixtral"), "\"mixtral\"", "\"mixtral_gru\""), false),
      ErrorCode::kInvalidArgument, HasSubstr("model_type is \"mixtral_gru\""));
}

}  // namespace
}  // namespace moiety
