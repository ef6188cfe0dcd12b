// Rotary embeddings in config.json: rope_theta and rope_scaling (transformers 4), rope_parameters
// (transformers 5), alone or one for each type of layer.
#include <optional>

#include "checkpoint/parse_parts.h"
#include "checkpoint/rope.h"

namespace moiety {
namespace {

using Kind = RopeParameters::Kind;

constexpr double kMinTheta = 1;
constexpr double kMaxTheta = 1e15;

// What stands beside the block and holds where the block does not say.
struct RopeContext {
  std::optional<double> theta;
  std::optional<std::int32_t> original_positions;
  std::int32_t max_positions = 0;
};

Result<RopeContext> read_context(ConfigFields& fields, const Architecture& model) {
  RopeContext context;
  context.max_positions = model.max_positions;
  if (fields.has("rope_theta")) {
    MOIETY_ASSIGN(context.theta, fields.number("rope_theta", kMinTheta, kMaxTheta));
  }
  fields.ignore("rope_theta");
  if (fields.has("original_max_position_embeddings")) {
    MOIETY_ASSIGN(context.original_positions,
                  fields.integer("original_max_position_embeddings", 1, kMaxPositions));
  }
  MOIETY_ASSIGN(const double rotated, fields.number("partial_rotary_factor", 0, 1, 1));
  if (rotated != 1) return fields.refuse("partial_rotary_factor", "only 1 is understood");
  return context;
}

Result<Kind> read_kind(ConfigFields& block) {
  std::optional<Kind> kind;
  for (const char* field : {"rope_type", "type"}) {
    if (!block.has(field)) {
      block.ignore(field);
      continue;
    }
    MOIETY_ASSIGN(const std::string text, block.text(field, ""));
    std::optional<Kind> named;
    if (text == "default") named = Kind::kDefault;
    if (text == "linear") named = Kind::kLinear;
    if (text == "llama3") named = Kind::kLlama3;
    if (text == "yarn") named = Kind::kYarn;
    if (!named) {
      return block.refuse(field,
                          "only \"default\", \"linear\", \"llama3\" and \"yarn\" are understood");
    }
    if (kind && *kind != *named) return block.refuse(field, "it contradicts rope_type");
    kind = named;
  }
  return kind.value_or(Kind::kDefault);
}

Result<void> read_original_positions(ConfigFields& block,
                                     const RopeContext& context,
                                     RopeParameters& rope) {
  constexpr const char* kField = "original_max_position_embeddings";
  rope.original_positions = context.original_positions.value_or(context.max_positions);
  if (!block.has(kField)) {
    block.ignore(kField);
    return {};
  }
  MOIETY_ASSIGN(rope.original_positions, block.integer(kField, 1, kMaxPositions));
  if (context.original_positions && *context.original_positions != rope.original_positions) {
    return block.refuse(kField, "it contradicts the field of this name outside, which is " +
                                    std::to_string(*context.original_positions));
  }
  return {};
}

Result<void> read_llama3(ConfigFields& block, const RopeContext& context, RopeParameters& rope) {
  MOIETY_ASSIGN(rope.factor, block.number("factor", 1e-3, 1e6));
  MOIETY_ASSIGN(rope.low_freq_factor, block.number("low_freq_factor", 1e-3, 1e6));
  MOIETY_ASSIGN(rope.high_freq_factor, block.number("high_freq_factor", 1e-3, 1e6));
  if (rope.high_freq_factor <= rope.low_freq_factor) {
    return block.refuse("high_freq_factor", "it must exceed low_freq_factor");
  }
  return read_original_positions(block, context, rope);
}

Result<void> read_yarn(ConfigFields& block, const RopeContext& context, RopeParameters& rope) {
  MOIETY_TRY(read_original_positions(block, context, rope));
  // Without a factor, the ratio of the contexts.
  MOIETY_ASSIGN(rope.factor,
                block.number("factor", 1e-3, 1e6,
                             static_cast<double>(context.max_positions) / rope.original_positions));
  const auto positive = [&](const char* field, double& value) -> Result<void> {
    MOIETY_ASSIGN(const double given, block.number(field, 0, 1e6, value));
    if (given != 0) value = given;  // 0 means the default, as in transformers
    return {};
  };
  MOIETY_TRY(positive("beta_fast", rope.beta_fast));
  MOIETY_TRY(positive("beta_slow", rope.beta_slow));
  MOIETY_TRY(positive("mscale", rope.mscale));
  MOIETY_TRY(positive("mscale_all_dim", rope.mscale_all_dim));
  if (block.has("attention_factor")) {
    MOIETY_ASSIGN(rope.attention_factor, block.number("attention_factor", 1e-6, 1e6));
  }
  block.ignore("attention_factor");
  MOIETY_ASSIGN(rope.truncate, block.flag("truncate", true));
  if (rope.theta <= kMinTheta) {
    return block.refuse("rope_type", "yarn needs a rope_theta above 1");
  }
  return {};
}

// One object with the parameters of a rotary embedding.
Result<RopeParameters> read_parameters(ConfigFields& block, const RopeContext& context) {
  RopeParameters rope;
  MOIETY_ASSIGN(rope.kind, read_kind(block));
  if (block.has("rope_theta")) {
    MOIETY_ASSIGN(rope.theta, block.number("rope_theta", kMinTheta, kMaxTheta));
    if (context.theta && *context.theta != rope.theta) {
      return block.refuse("rope_theta", "it contradicts the rope_theta outside of this object");
    }
  } else if (context.theta) {
    rope.theta = *context.theta;
  } else {
    return block.refuse("rope_theta", "a number is needed here, or outside of this object");
  }
  block.ignore("rope_theta");
  MOIETY_ASSIGN(const double rotated, block.number("partial_rotary_factor", 0, 1, 1));
  if (rotated != 1) return block.refuse("partial_rotary_factor", "only 1 is understood");
  if (rope.kind == Kind::kLinear) {
    MOIETY_ASSIGN(rope.factor, block.number("factor", 1e-3, 1e6));
  } else if (rope.kind == Kind::kLlama3) {
    MOIETY_TRY(read_llama3(block, context, rope));
  } else if (rope.kind == Kind::kYarn) {
    MOIETY_TRY(read_yarn(block, context, rope));
  }
  MOIETY_TRY(block.refuse_unread());
  return rope;
}

// The embeddings of layers without and with a window.
struct RopePair {
  RopeParameters full, sliding;
  bool operator==(const RopePair&) const = default;
};

Result<RopePair> read_block(ConfigFields& block,
                            const RopeContext& context,
                            const Architecture& model) {
  if (!block.has("full_attention") && !block.has("sliding_attention")) {
    MOIETY_ASSIGN(const RopeParameters rope, read_parameters(block, context));
    return RopePair{rope, rope};
  }
  const auto of_type = [&](const char* type) -> Result<std::optional<RopeParameters>> {
    std::optional<RopeParameters> rope;
    MOIETY_ASSIGN(auto nested, block.object(type));
    if (nested) {
      MOIETY_ASSIGN(rope, read_parameters(*nested, context));
    }
    return rope;
  };
  MOIETY_ASSIGN(const auto full, of_type("full_attention"));
  MOIETY_ASSIGN(const auto sliding, of_type("sliding_attention"));
  for (const LayerDescription& layer : model.layers) {
    if (layer.window == 0 && !full) {
      return block.refuse("full_attention", "there are layers of this type");
    }
    if (layer.window != 0 && !sliding) {
      return block.refuse("sliding_attention", "there are layers of this type");
    }
  }
  MOIETY_TRY(block.refuse_unread());
  return RopePair{full.value_or(RopeParameters{}), sliding.value_or(RopeParameters{})};
}

Result<RopePair> read_pair(ConfigFields& fields, const Architecture& model) {
  MOIETY_ASSIGN(const RopeContext context, read_context(fields, model));
  std::optional<RopePair> pair;
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    MOIETY_ASSIGN(auto block, fields.object(name));
    if (!block) continue;
    MOIETY_ASSIGN(const RopePair read, read_block(*block, context, model));
    if (pair && *pair != read) return fields.refuse(name, "it contradicts rope_scaling");
    pair = read;
  }
  if (!pair) {
    if (!context.theta) return fields.refuse("rope_theta", "a number is needed");
    RopeParameters plain;
    plain.theta = *context.theta;
    pair = RopePair{plain, plain};
  }
  return *pair;
}

}  // namespace

Result<void> read_ropes(ConfigFields& fields, Architecture& model) {
  MOIETY_ASSIGN(const RopePair pair, read_pair(fields, model));
  bool any_full = false;
  bool any_sliding = false;
  for (const LayerDescription& layer : model.layers) {
    (layer.window == 0 ? any_full : any_sliding) = true;
  }
  if (!any_sliding || !any_full || pair.full == pair.sliding) {
    model.ropes.push_back(describe_rope(any_full ? pair.full : pair.sliding, model.head_dim));
    return {};
  }
  model.ropes = {describe_rope(pair.full, model.head_dim),
                 describe_rope(pair.sliding, model.head_dim)};
  for (LayerDescription& layer : model.layers) layer.rope = layer.window == 0 ? 0 : 1;
  return {};
}

}  // namespace moiety
