#include "checkpoint/architecture.h"

#include "tests/checkpoint/config_testing.h"

namespace moiety {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(Architecture, ReadsEmo) {
  const Architecture model = parse(config_of("emo"));
  EXPECT_EQ(model.name, "EmoForCausalLM");
  EXPECT_EQ(model.vocab_size, 384);
  EXPECT_EQ(model.hidden_size, 64);
  EXPECT_EQ(model.num_heads, 4);
  EXPECT_EQ(model.num_kv_heads, 4);
  EXPECT_EQ(model.head_dim, 16);
  EXPECT_EQ(model.attention_scale, 0.25f);
  EXPECT_EQ(model.max_positions, 256);
  EXPECT_EQ(model.rms_norm_eps, 1e-6f);
  EXPECT_EQ(model.ropes.at(0).theta, 500000.0);
  EXPECT_EQ(model.qk_norm, QkNorm::kNone);
  EXPECT_EQ(model.clip_qkv, 0);
  EXPECT_FALSE(model.tie_embeddings);
  EXPECT_FALSE(model.physically_pruned);
  EXPECT_EQ(model.weights_dtype, DType::kF32);
  EXPECT_THAT(model.eos_ids, ElementsAre(2));
  EXPECT_EQ(model.attention_norm_name, "pre_attention_layernorm");
  EXPECT_EQ(model.ffn_norm_name, "pre_feedforward_layernorm");
  ASSERT_EQ(model.num_layers(), 3);
  for (const LayerDescription& layer : model.layers) {
    EXPECT_EQ(layer.moe.num_routed, 11);
    EXPECT_EQ(layer.moe.num_shared, 1);
    EXPECT_EQ(layer.moe.top_k, 3);  // the shared one is the fourth
    EXPECT_EQ(layer.moe.gate_rows, 12);
    EXPECT_EQ(layer.moe.intermediate, 32);
    EXPECT_FALSE(layer.moe.norm_topk);
  }
  EXPECT_EQ(model.expert_parameters(0), 3 * 64 * 32);
}

TEST(Architecture, ReadsPrunedEmo) {
  const Architecture model = parse(config_of("emo-pruned"), true);
  EXPECT_TRUE(model.physically_pruned);
  EXPECT_EQ(model.weights_dtype, DType::kBF16);
  EXPECT_EQ(model.layers[2].moe.num_routed, 5);
  EXPECT_EQ(model.layers[2].moe.top_k, 3);
}

TEST(Architecture, ReadsRaggedEmo) {
  const Architecture model = parse(config_of("emo-ragged"), true);
  std::vector<std::int32_t> routed;
  for (const LayerDescription& layer : model.layers) {
    routed.push_back(layer.moe.num_routed);
    EXPECT_EQ(layer.moe.gate_rows, layer.moe.num_routed + 1);
    EXPECT_EQ(layer.moe.top_k, 3);
  }
  EXPECT_THAT(routed, ElementsAre(6, 4, 9));
  EXPECT_EQ(model.max_routed(), 9);
}

TEST(Architecture, EmoSelectsAtMostWhatALayerHas) {
  const std::string config =
      replaced(config_of("emo-ragged"), "\"num_experts_per_tok\": 4", "\"num_experts_per_tok\": 8");
  const Architecture model = parse(config, true);
  EXPECT_EQ(model.layers[0].moe.top_k, 6);
  EXPECT_EQ(model.layers[1].moe.top_k, 4);
  EXPECT_EQ(model.layers[2].moe.top_k, 7);
}

TEST(Architecture, EmoWithoutSharedExpert) {
  const std::string config =
      replaced(config_of("emo"), "\"num_shared_experts\": 1", "\"num_shared_experts\": 0");
  const Architecture model =
      parse(replaced(config, "\"norm_topk_prob\": false", "\"norm_topk_prob\": true"));
  EXPECT_EQ(model.layers[0].moe.num_routed, 12);
  EXPECT_EQ(model.layers[0].moe.num_shared, 0);
  EXPECT_EQ(model.layers[0].moe.top_k, 4);
  EXPECT_TRUE(model.layers[0].moe.norm_topk);
}

TEST(Architecture, ReadsOlmoe) {
  const Architecture model = parse(config_of("olmoe"));
  EXPECT_EQ(model.name, "OlmoeForCausalLM");
  EXPECT_EQ(model.qk_norm, QkNorm::kWholeProjection);
  EXPECT_EQ(model.rms_norm_eps, 1e-5f);
  EXPECT_EQ(model.ropes.at(0).theta, 10000.0);
  EXPECT_EQ(model.attention_norm_name, "input_layernorm");
  EXPECT_EQ(model.ffn_norm_name, "post_attention_layernorm");
  EXPECT_EQ(model.layers[0].moe.num_routed, 16);
  EXPECT_EQ(model.layers[0].moe.num_shared, 0);
  EXPECT_EQ(model.layers[0].moe.gate_rows, 16);
  EXPECT_EQ(model.layers[0].moe.top_k, 4);
}

TEST(Architecture, HonoursOlmoesClipAndNormalisation) {
  std::string config = replaced(config_of("olmoe"), "\"clip_qkv\": null", "\"clip_qkv\": 8.5");
  config = replaced(config, "\"norm_topk_prob\": false", "\"norm_topk_prob\": true");
  const Architecture model = parse(config);
  EXPECT_EQ(model.clip_qkv, 8.5f);
  EXPECT_TRUE(model.layers[0].moe.norm_topk);
}

TEST(Architecture, ReadsTheSpellingOfTransformers5) {
  std::string config = config_of("olmoe");
  for (const char* field : {"rope_theta", "rope_scaling", "torch_dtype"}) {
    config = without(config, field);
  }
  config = replaced(config, "\"num_experts\":", "\"num_local_experts\":");
  config = with(config,
                R"("rope_parameters": {"rope_theta": 12345.0, "rope_type": "default"},
                   "dtype": "bfloat16",
                   "layer_types": ["full_attention", "full_attention", "full_attention"])");
  const Architecture model = parse(config);
  EXPECT_EQ(model.ropes.at(0).theta, 12345.0);
  EXPECT_EQ(model.weights_dtype, DType::kBF16);
  EXPECT_EQ(model.layers[0].moe.num_routed, 16);
}

TEST(Architecture, FewerKeyHeadsAndOwnHeadWidth) {
  std::string config =
      replaced(config_of("olmoe"), "\"num_key_value_heads\": 4", "\"num_key_value_heads\": 2");
  Architecture model = parse(with(config, "\"head_dim\": 32"));
  EXPECT_EQ(model.q_size(), 128);
  EXPECT_EQ(model.kv_size(), 64);
  model = parse(replaced(config, "\"num_key_value_heads\": 2", "\"num_key_value_heads\": null"));
  EXPECT_EQ(model.num_kv_heads, 4);
}

TEST(Architecture, EosIdsOfBothFilesTogether) {
  std::string config =
      replaced(config_of("emo"), "\"eos_token_id\": 2", "\"eos_token_id\": [5, 2]");
  Architecture model = parse(config);
  EXPECT_THAT(model.eos_ids, ElementsAre(5, 2));
  ASSERT_TRUE(add_generation_config(R"({"eos_token_id": [2, 7], "temperature": 0.7})", model));
  EXPECT_THAT(model.eos_ids, ElementsAre(5, 2, 7));
  ASSERT_TRUE(add_generation_config("{}", model));
  EXPECT_THAT(model.eos_ids, ElementsAre(5, 2, 7));
  for (const char* bad : {"-1", "1.5", "\"2\"", "[2, -1]"}) {
    expect_error(add_generation_config("{" + spelled("eos_token_id", bad) + "}", model),
                 ErrorCode::kInvalidArgument, HasSubstr("eos_token_id"));
  }
  config = replaced(config_of("emo"), "\"eos_token_id\": 2", "\"eos_token_id\": null");
  EXPECT_TRUE(parse(config).eos_ids.empty());
}

TEST(Architecture, AnEosIdOutsideOfTheVocabularyIsNamedAndEndsNothing) {
  Architecture model;
  std::string log = logged([&] {
    model = parse(
        replaced(config_of("emo"), "\"eos_token_id\": 2", "\"eos_token_id\": [50279, 383, 384]"));
  });
  EXPECT_THAT(model.eos_ids, ElementsAre(383));
  EXPECT_THAT(log, AllOf(HasSubstr("config.json: eos_token_id 50279"),
                         HasSubstr("eos_token_id 384 ends no text"), HasSubstr("384 tokens")));
  log = logged(
      [&] { EXPECT_TRUE(add_generation_config(R"({"eos_token_id": [2, 100000]})", model)); });
  EXPECT_THAT(model.eos_ids, ElementsAre(383, 2));
  EXPECT_THAT(log, HasSubstr("generation_config.json: eos_token_id 100000"));
}

TEST(Architecture, IgnoresWhatCannotChangeTheAnswer) {
  parse(with(config_of("emo"), R"("_name_or_path": "somewhere", "tokenizer_class": "GPT2",
      "auto_map": {"AutoConfig": "configuration_emo.EmoConfig"}, "initializer_range": 0.5,
      "sliding_window": null, "use_sliding_window": false, "dense_mlp_bias": false,
      "quantization_config": null, "mlp_only_layers": [], "something_new": 0)"));
}

TEST(Architecture, NamesTheSupportedArchitectures) {
  for (const char* name : {"LlamaForCausalLM", "DeepseekV2ForCausalLM"}) {
    expect_error(parse_architecture(replaced(config_of("emo"), "EmoForCausalLM", name), false),
                 ErrorCode::kInvalidArgument,
                 AllOf(HasSubstr(name), HasSubstr("EmoForCausalLM, OlmoeForCausalLM, Mixtral")));
  }
  expect_error(parse_architecture("{}", false), ErrorCode::kInvalidArgument,
               HasSubstr("architectures is missing"));
  expect_refused(replaced(config_of("emo"), "\"emo\"", "\"olmoe\""), "model_type", "\"olmoe\"");
}

TEST(Architecture, RefusesWhatWouldChangeTheAnswer) {
  struct Case {
    const char *fixture, *from, *to, *field, *value;
  };
  const Case cases[] = {
      {"emo", "\"silu\"", "\"gelu\"", "hidden_act", "\"gelu\""},
      {"emo", "\"attention_bias\": false", "\"attention_bias\": true", "attention_bias", "true"},
      {"emo", "\"always_active_experts\": null", "\"always_active_experts\": [1]",
       "always_active_experts", "[1]"},
      {"emo", "\"num_shared_experts\": 1", "\"num_shared_experts\": 2", "num_shared_experts", "2"},
      {"emo", "\"num_experts_per_tok\": 4", "\"num_experts_per_tok\": 1", "num_experts_per_tok",
       "1"},
      {"emo", "\"norm_topk_prob\": false", "\"norm_topk_prob\": true", "norm_topk_prob", "true"},
      {"emo", "\"float32\"", "\"float8_e4m3fn\"", "torch_dtype", "\"float8_e4m3fn\""},
      {"emo-ragged", "    5,", "", "num_experts_per_layer", "[7,10]"},
      {"emo-ragged", "    5,", "    1,", "num_experts_per_layer", "[7,1,10]"},
      {"olmoe", "\"clip_qkv\": null", "\"clip_qkv\": 0", "clip_qkv", "0"},
      {"olmoe", "\"num_experts_per_tok\": 4", "\"num_experts_per_tok\": 17", "num_experts_per_tok",
       "17"},
      {"olmoe", "\"num_key_value_heads\": 4", "\"num_key_value_heads\": 3", "num_key_value_heads",
       "3"},
      {"olmoe", "\"num_attention_heads\": 4", "\"num_attention_heads\": 12", "num_attention_heads",
       "12"},
  };
  for (const Case& c : cases) {
    expect_refused(replaced(config_of(c.fixture), c.from, c.to), c.field, c.value);
  }
  for (const char* field : {"\"sliding_window\": 4096", "\"dense_intermediate_size\": 32",
                            "\"quantization_config\": {\"bits\":4}", "\"brand_new\": \"x\"",
                            "\"num_shared_experts_per_layer\": [1,1,0]", "\"head_dim\": 15",
                            "\"layer_types\": [\"sliding_attention\"]", "\"clip_qkv\": 8.0",
                            "\"num_local_experts\": 11", "\"partial_rotary_factor\": 0.5"}) {
    const std::string text = field;
    const std::string name = text.substr(1, text.find('"', 1) - 1);
    const bool alias = name == "num_local_experts";  // then both are there, and one is named
    expect_refused(with(config_of("emo"), text), alias ? "num_experts" : name,
                   alias ? "12" : text.substr(name.size() + 4));
  }
}

TEST(Architecture, RefusesBadNumbers) {
  for (const char* field :
       {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "num_experts", "num_experts_per_tok",
        "intermediate_size", "num_shared_experts", "rms_norm_eps", "rope_theta"}) {
    const std::string config = without(config_of("emo"), field);
    if (std::string_view(field) != "num_key_value_heads") {
      expect_refused(config, std::string(field) + " is missing", "");
    }
    for (const char* value : {"-1", "2147483648", "99999999999999999999", "\"4\"", "[4]", "1e300",
                              "-9223372036854775808", "true"}) {
      if (std::string_view(field) == "rope_theta" && value[0] == '2') continue;  // unusual, no more
      SCOPED_TRACE(value);
      expect_error(parse_architecture(with(config, spelled(field, value)), false),
                   ErrorCode::kInvalidArgument,
                   testing::AnyOf(HasSubstr(field), HasSubstr("JSON")));
    }
    if (std::string_view(field) != "num_shared_experts") {
      expect_refused(with(config, spelled(field, "0")), field, "0");
    }
  }
}

TEST(Architecture, BoundsTheNumberOfExpertsInAll) {
  std::string config = replaced(config_of("olmoe"), "\"num_experts\": 16", "\"num_experts\": 4096");
  config = replaced(config, "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 1024");
  expect_refused(config, "num_hidden_layers", "1024");
}

TEST(Architecture, RefusesTextThatIsNoConfiguration) {
  const std::string config = config_of("emo");
  for (std::size_t length = 0; length + 1 < config.size(); ++length) {
    ASSERT_FALSE(parse_architecture(config.substr(0, length), false)) << length;
  }
  for (const char* text : {"", "[]", "1", "null", "{\"a\":\xff}", "{} {}"}) {
    EXPECT_FALSE(parse_architecture(text, false)) << text;
  }
  EXPECT_FALSE(parse_architecture(std::string(100000, '['), false));
  expect_error(parse_architecture(with(config, "\"vocab_size\": 384"), false),
               ErrorCode::kInvalidArgument, HasSubstr("vocab_size stands there twice"));
}

TEST(Architecture, ExpectedTensors) {
  Architecture model = parse(config_of("olmoe"));
  std::vector<ExpectedTensor> tensors = expected_tensors(model);
  EXPECT_EQ(tensors.size(), 3u + 3u * (9 + 16 * 3));
  const auto shape_of = [&](std::string_view name) {
    for (const ExpectedTensor& tensor : tensors) {
      if (tensor.name == name) return tensor.shape;
    }
    return std::vector<std::int64_t>{-1};
  };
  EXPECT_THAT(shape_of("model.layers.2.self_attn.q_norm.weight"), ElementsAre(64));
  EXPECT_THAT(shape_of("model.layers.2.mlp.gate.weight"), ElementsAre(16, 64));
  EXPECT_THAT(shape_of("model.layers.2.mlp.experts.15.up_proj.weight"), ElementsAre(32, 64));
  EXPECT_THAT(shape_of("model.layers.2.mlp.experts.15.down_proj.weight"), ElementsAre(64, 32));
  EXPECT_THAT(shape_of("lm_head.weight"), ElementsAre(384, 64));
  model.tie_embeddings = true;
  tensors = expected_tensors(model);
  EXPECT_THAT(shape_of("lm_head.weight"), ElementsAre(-1));
}

}  // namespace
}  // namespace moiety
