#pragma once

#include <cstdint>

#include "checkpoint/config_fields.h"
#include "checkpoint/families.h"

/// The parts of parse_architecture(). Each reads its fields of config.json into `model`, whose
/// layers have been counted, and refuses by name what it does not understand.
namespace moiety {

// Far above every published model, and small enough that no product of two of them overflows and
// that a hostile file cannot make us allocate what its tensors do not back.
inline constexpr std::int32_t kMaxVocab = 1 << 24;
inline constexpr std::int32_t kMaxWidth = 1 << 20;
inline constexpr std::int32_t kMaxHeads = 1024;
inline constexpr std::int32_t kMaxHeadDim = 1024;
inline constexpr std::int32_t kMaxLayers = 1024;
inline constexpr std::int32_t kMaxExperts = 4096;          // per layer
inline constexpr std::int64_t kMaxExpertsInAll = 1 << 17;  // over all layers
inline constexpr std::int32_t kMaxPositions = 1 << 24;

/// Heads, norms, biases and windows of attention. Needs hidden_size.
Result<void> read_attention(ConfigFields& fields, const Family& family, Architecture& model);

/// Rotary embeddings. Needs what read_attention() and max_position_embeddings say.
Result<void> read_ropes(ConfigFields& fields, Architecture& model);

/// Experts, shared experts and dense layers.
Result<void> read_experts(ConfigFields& fields, const Family& family, Architecture& model);

}  // namespace moiety
