#pragma once

#include <cstdint>
#include <string>

#include "checkpoint/architecture.h"

namespace moiety {

/// The parameters of one rotary embedding, named as config.json names them. Internal to the parser.
struct RopeParameters {
  enum class Kind : std::uint8_t { kDefault, kLinear, kLlama3, kYarn };

  Kind kind = Kind::kDefault;
  double theta = 10000;
  double factor = 1;
  std::int32_t original_positions = 0;  ///< original_max_position_embeddings; llama3 and yarn
  double low_freq_factor = 1;           ///< llama3
  double high_freq_factor = 4;
  double beta_fast = 32;  ///< yarn
  double beta_slow = 1;
  double attention_factor = 0;  ///< 0: follows from factor, mscale and mscale_all_dim
  double mscale = 0;
  double mscale_all_dim = 0;
  bool truncate = true;

  bool operator==(const RopeParameters&) const = default;
};

/// The frequencies of heads of `head_dim` elements, as transformers 5 computes them
/// (modeling_rope_utils.py). They are formed in double and rounded once.
RopeDescription describe_rope(const RopeParameters& parameters, std::int32_t head_dim);

}  // namespace moiety
