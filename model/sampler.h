#pragma once

#include <cstdint>
#include <span>

namespace moiety {

struct SamplingParams {
  float temperature = 1.0f;  ///< 0 = greedy
  float top_p = 1.0f;        ///< nucleus: the smallest set of tokens whose probability reaches it
  std::uint64_t seed = 0;
};

/// Chooses the next token from raw logits [vocab].
///
/// `index` counts the sequence's generated tokens: the random number is a function of (seed, index)
/// alone, so the same seed gives the same tokens whatever else is in the batch. Greedy ties go to
/// the lower id.
std::int32_t sample(std::span<const float> logits,
                    const SamplingParams& params,
                    std::uint64_t index);

/// log softmax(logits)[token], sums in double.
double log_probability(std::span<const float> logits, std::int32_t token);

}  // namespace moiety
