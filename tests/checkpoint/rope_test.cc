// Rotary embeddings in config.json. Expected frequencies are those of transformers 5.23, computed
// once by its modeling_rope_utils.
#include "checkpoint/rope.h"
#include "tests/checkpoint/config_testing.h"

namespace moiety {
namespace {

using testing::ElementsAre;

void expect_near(const std::vector<float>& actual, const std::vector<double>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(actual[i], expected[i], 4e-7 * expected[i]) << i;
  }
}

// EMO's small configuration (rope_theta 500000, head_dim 16, 256 positions) with another block.
std::string scaled(const std::string& block) {
  return replaced(config_of("emo"), "\"rope_scaling\": null", "\"rope_scaling\": " + block);
}

RopeDescription rope_of(const std::string& block) { return parse(scaled(block)).ropes.at(0); }

TEST(Rope, LinearDividesByTheFactor) {
  const RopeDescription rope = rope_of(R"({"rope_type": "linear", "factor": 2.5})");
  expect_near(rope.frequencies, {0.400000006, 0.0775691047, 0.0150424121, 0.00291706598,
                                 0.00056568539, 0.000109699278, 2.12731829e-05, 4.12535428e-06});
  EXPECT_FLOAT_EQ(rope.attention_factor, 1.0f);
}

TEST(Rope, Llama3) {
  const RopeDescription rope = rope_of(
      R"({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64})");
  expect_near(rope.frequencies, {1.0, 0.079403013, 0.00470075384, 0.000911583134, 0.000176776681,
                                 3.42810235e-05, 6.64786967e-06, 1.28917316e-06});
  EXPECT_FLOAT_EQ(rope.attention_factor, 1.0f);
}

TEST(Rope, Yarn) {
  const RopeDescription rope =
      rope_of(R"({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64})");
  expect_near(rope.frequencies, {1.0, 0.121201724, 0.00940150768, 0.00182316627, 0.000353553361,
                                 6.85620471e-05, 1.32957393e-05, 2.57834631e-06});
  EXPECT_FLOAT_EQ(rope.attention_factor, 1.13862944f);
}

TEST(Rope, YarnWithEverything) {
  const RopeDescription rope = rope_of(
      R"({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128, "beta_fast": 12.0, "beta_slow": 0.5, "mscale": 0.7, "mscale_all_dim": 0.3, "truncate": false})");
  expect_near(rope.frequencies, {1.0, 0.134601712, 0.00911886524, 0.000911583134, 0.000176776681,
                                 3.42810235e-05, 6.64786967e-06, 1.28917316e-06});
  EXPECT_FLOAT_EQ(rope.attention_factor, 1.07829346f);
}

TEST(Rope, YarnWithAttentionFactor) {
  const RopeDescription rope = rope_of(
      R"({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128, "attention_factor": 1.25, "mscale": 2.0, "mscale_all_dim": 1.0})");
  expect_near(rope.frequencies, {1.0, 0.145442069, 0.0188030154, 0.00364633254, 0.000707106723,
                                 0.000137124094, 2.65914787e-05, 5.15669262e-06});
  EXPECT_FLOAT_EQ(rope.attention_factor, 1.25f);
}

TEST(Rope, YarnOfTheWholeContext) {
  const RopeDescription rope = rope_of(R"({"rope_type": "yarn", "factor": 2.0})");
  expect_near(rope.frequencies, {1.0, 0.161602288, 0.0250706859, 0.00364633254, 0.000707106723,
                                 0.000137124094, 2.65914787e-05, 5.15669262e-06});
  EXPECT_FLOAT_EQ(rope.attention_factor, 1.06931472f);
}

TEST(Rope, YarnThatShrinks) {
  const RopeDescription rope = rope_of(R"({"rope_type": "yarn", "factor": 0.5})");
  expect_near(rope.frequencies, {1.0, 0.258563697, 0.0626767203, 0.0145853302, 0.00282842689,
                                 0.000548496377, 0.000106365915, 2.06267705e-05});
  EXPECT_FLOAT_EQ(rope.attention_factor, 1.0f);
}

TEST(Rope, SpellingsOfTheSame) {
  const RopeDescription plain = parse(config_of("emo")).ropes.at(0);
  EXPECT_EQ(rope_of("{}").frequencies, plain.frequencies);
  EXPECT_EQ(rope_of(R"({"type": "default"})").frequencies, plain.frequencies);
  const RopeDescription linear = rope_of(R"({"type": "linear", "factor": 4})");
  EXPECT_EQ(rope_of(R"({"rope_type": "linear", "type": "linear", "factor": 4.0})").frequencies,
            linear.frequencies);
  const std::string newer = R"("rope_parameters": {"rope_type": "linear", "factor": 4,
                               "rope_theta": 500000.0})";
  EXPECT_EQ(parse(with(without(config_of("emo"), "rope_theta"), newer)).ropes.at(0).frequencies,
            linear.frequencies);
  EXPECT_EQ(
      parse(with(scaled(R"({"type": "linear", "factor": 4})"), newer)).ropes.at(0).frequencies,
      linear.frequencies);
}

TEST(Rope, TheOriginalLengthMayStandOutside) {
  const std::string inside = scaled(R"({"type": "yarn", "factor": 2,
                                        "original_max_position_embeddings": 64})");
  const std::string outside =
      with(scaled(R"({"type": "yarn", "factor": 2})"), R"("original_max_position_embeddings": 64)");
  EXPECT_EQ(parse(inside).ropes.at(0).frequencies, parse(outside).ropes.at(0).frequencies);
  expect_refused(with(inside, R"("original_max_position_embeddings": 32)"),
                 "rope_scaling.original_max_position_embeddings", "64");
  // Without a factor: the ratio of the lengths.
  EXPECT_EQ(rope_of(R"({"type": "yarn", "original_max_position_embeddings": 64})").frequencies,
            rope_of(R"({"type": "yarn", "factor": 4,
                        "original_max_position_embeddings": 64})")
                .frequencies);
}

TEST(Rope, OneForEachTypeOfLayer) {
  const std::string config =
      without(without(config_of("small/qwen2_moe-window"), "rope_theta"), "rope_type");
  const std::string nested = R"("rope_parameters": {
      "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
      "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}})";
  const Architecture model =
      parse(with(replaced(config, "\"rope_parameters\"", "\"_rope_parameters\""), nested));
  ASSERT_EQ(model.ropes.size(), 2u);
  for (const LayerDescription& layer : model.layers) {
    const RopeDescription& rope = model.ropes.at(static_cast<std::size_t>(layer.rope));
    EXPECT_EQ(rope.theta, layer.window > 0 ? 500.0 : 10000.0);
    EXPECT_EQ(rope.frequencies[0], layer.window > 0 ? 1.0f : 0.5f);
  }
  const std::string half = R"("rope_parameters": {
      "full_attention": {"rope_type": "default", "rope_theta": 10000.0}})";
  expect_refused(with(replaced(config, "\"rope_parameters\"", "\"_rope_parameters\""), half),
                 "rope_parameters.sliding_attention is missing", "");
}

TEST(Rope, RefusesWhatIsNotUnderstood) {
  struct Case {
    const char *block, *field, *value;
  };
  const Case cases[] = {
      {R"({"type": "dynamic", "factor": 2})", "rope_scaling.type", "\"dynamic\""},
      {R"({"rope_type": "longrope", "factor": 2})", "rope_scaling.rope_type", "\"longrope\""},
      {R"({"rope_type": "linear", "type": "yarn", "factor": 2})", "rope_scaling.type", "\"yarn\""},
      {R"({"rope_type": "linear"})", "rope_scaling.factor is missing", ""},
      {R"({"rope_type": "linear", "factor": 0})", "rope_scaling.factor", "0"},
      {R"({"rope_type": "linear", "factor": "2"})", "rope_scaling.factor", "\"2\""},
      {R"({"rope_type": "linear", "factor": 2, "beta_fast": 3})", "rope_scaling.beta_fast", "3"},
      {R"({"rope_type": "default", "factor": 2})", "rope_scaling.factor", "2"},
      {R"({"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4})",
       "rope_scaling.high_freq_factor", "4"},
      {R"({"rope_type": "llama3", "factor": 2, "low_freq_factor": 4})",
       "rope_scaling.high_freq_factor is missing", ""},
      {R"({"rope_type": "yarn", "factor": 2, "attention_factor": 0})",
       "rope_scaling.attention_factor", "0"},
      {R"({"rope_type": "yarn", "factor": 2, "truncate": "no"})", "rope_scaling.truncate",
       "\"no\""},
      {R"({"rope_type": "yarn", "factor": 2, "mrope_section": [1]})", "rope_scaling.mrope_section",
       "[1]"},
      {R"({"rope_theta": 7.0})", "rope_scaling.rope_theta", "7.0"},
      {R"({"partial_rotary_factor": 0.5})", "rope_scaling.partial_rotary_factor", "0.5"},
      {R"("yarn")", "rope_scaling", "\"yarn\""},
  };
  for (const Case& c : cases) expect_refused(scaled(c.block), c.field, c.value);
  expect_refused(with(scaled(R"({"type": "linear", "factor": 4})"),
                      R"("rope_parameters": {"rope_type": "linear", "factor": 3})"),
                 "rope_parameters", "{");
  expect_refused(with(config_of("emo"), "\"partial_rotary_factor\": 0.5"), "partial_rotary_factor",
                 "0.5");
  expect_refused(without(config_of("emo"), "rope_theta"), "rope_theta is missing", "");
}

}  // namespace
}  // namespace moiety
