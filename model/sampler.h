#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace moiety {

/// How the next token is chosen. The defaults change nothing: plain sampling from the softmax.
///
/// The steps are vLLM's (V1), in its order; greedy decoding ends after step 4:
///   1. until min_tokens tokens are generated, min_tokens_ids cannot be chosen
///   2. logit_bias is added
///   3. repetition_penalty: positive logits are divided by it, others multiplied
///   4. frequency_penalty, then presence_penalty, are subtracted
///   5. logits are divided by the temperature
///   6. min_p, against the largest probability
///   7. top_k of what is left; of equally probable tokens the lower ids
///   8. top_p: the smallest set of what is left, most probable first and lower ids first among
///      equals, that reaches top_p of the probability of what is left
///   9. the draw, with probabilities in proportion
struct SamplingParams {
  float temperature = 1.0f;  ///< below kGreedyTemperature: greedy
  float top_p = 1.0f;        ///< 1 = all; the most probable token is always kept
  std::uint64_t seed = 0;
  std::int32_t top_k = 0;           ///< the k most probable only; 0 = all
  float min_p = 0.0f;               ///< drops tokens below min_p times the largest probability
  float repetition_penalty = 1.0f;  ///< CTRL: of every token in prompt or output; 1 = none; > 0
  float presence_penalty = 0.0f;    ///< subtracted once from every token in the output
  float frequency_penalty = 0.0f;   ///< subtracted for each occurrence in the output
  std::vector<std::pair<std::int32_t, float>> logit_bias =
      {};  ///< (token id, added), ascending ids
  /// What may not end a sequence before it has min_tokens tokens: ends of text and stop ids.
  std::vector<std::int32_t> min_tokens_ids = {};
  std::int32_t min_tokens = 0;
  /// Log-probabilities to report: -1 none, 0 the chosen token's only, n also the n most probable.
  std::int32_t logprobs = -1;
};

inline constexpr float kGreedyTemperature = 1e-5f;

struct TokenLogprob {
  std::int32_t token = 0;
  float logprob = 0;
};

/// A chosen token. `logprob` and `top` (descending, ties to the lower id) are those of the softmax
/// of the model's raw logits, before bias, penalties and temperature; filled when asked for.
struct SampledToken {
  std::int32_t token = 0;
  float logprob = 0;
  std::vector<TokenLogprob> top = {};
};

/// Chooses the next token from raw logits [vocab].
///
///   prompt, generated   the sequence's tokens so far; penalties count them
///
/// The random number is a function of (seed, generated.size()) alone, so the same seed gives the
/// same tokens whatever else is in the batch. Greedy ties go to the lower id. A logit that is no
/// number counts as minus infinity; where nothing is left to choose from, token 0 is chosen.
/// Thread-safe; threads keep scratch of 12 bytes per token of the vocabulary.
SampledToken sample(std::span<const float> logits,
                    const SamplingParams& params,
                    std::span<const std::int32_t> prompt,
                    std::span<const std::int32_t> generated);

/// log softmax(logits)[token], sums in double.
double log_probability(std::span<const float> logits, std::int32_t token);

}  // namespace moiety
