#include "model/sampler.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"
#include "model/token_weights.h"

namespace moiety {
namespace {

/// SplitMix64 (Steele, Lea, Flood 2014): a counter-based generator, one well-mixed number per
/// input.
std::uint64_t mix(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

/// In [0, 1).
double uniform_number(std::uint64_t seed, std::uint64_t index) {
  return static_cast<double>(mix(mix(seed) ^ index) >> 11) * 0x1p-53;
}

bool masks(const SamplingParams& params, std::size_t generated) {
  return params.min_tokens > 0 && generated < static_cast<std::size_t>(params.min_tokens) &&
         !params.min_tokens_ids.empty();
}

bool changes_logits(const SamplingParams& params, std::size_t generated) {
  return masks(params, generated) || !params.logit_bias.empty() ||
         params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f ||
         params.frequency_penalty != 0.0f;
}

/// Steps 1 to 4 of SamplingParams. `occurrences` is scratch: zeros [vocab] before and after.
void change_logits(const SamplingParams& params,
                   std::span<const std::int32_t> prompt,
                   std::span<const std::int32_t> generated,
                   std::vector<std::int32_t>& occurrences,
                   std::span<float> logits) {
  const auto at = [&](std::int32_t token) -> float& {
    MOIETY_CHECK(token >= 0 && static_cast<std::size_t>(token) < logits.size(),
                 "a token id outside the vocabulary");
    return logits[static_cast<std::size_t>(token)];
  };
  if (masks(params, generated.size())) {
    for (std::int32_t token : params.min_tokens_ids) {
      at(token) = -std::numeric_limits<float>::infinity();
    }
  }
  for (const auto& [token, bias] : params.logit_bias) at(token) += bias;
  if (params.repetition_penalty != 1.0f) {
    const auto penalize = [&](std::int32_t token) {
      float& logit = at(token);
      std::int32_t& seen = occurrences[static_cast<std::size_t>(token)];
      if (seen++ > 0) return;
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    };
    std::for_each(prompt.begin(), prompt.end(), penalize);
    std::for_each(generated.begin(), generated.end(), penalize);
    for (std::int32_t token : prompt) occurrences[static_cast<std::size_t>(token)] = 0;
    for (std::int32_t token : generated) occurrences[static_cast<std::size_t>(token)] = 0;
  }
  if (params.presence_penalty != 0.0f || params.frequency_penalty != 0.0f) {
    for (std::int32_t token : generated) {
      at(token);  // checks the id
      ++occurrences[static_cast<std::size_t>(token)];
    }
    for (std::int32_t token : generated) {
      std::int32_t& count = occurrences[static_cast<std::size_t>(token)];
      if (count == 0) continue;
      at(token) -= params.frequency_penalty * static_cast<float>(count);
      at(token) -= params.presence_penalty;
      count = 0;
    }
  }
}

/// Per thread, so that a step allocates nothing.
struct Scratch {
  std::vector<float> logits;
  std::vector<std::int32_t> occurrences;
  TokenWeights weights;
};

std::int32_t choose(std::span<const float> logits,
                    const SamplingParams& params,
                    std::span<const std::int32_t> prompt,
                    std::span<const std::int32_t> generated) {
  thread_local Scratch scratch;
  if (changes_logits(params, generated.size())) {
    scratch.logits.assign(logits.begin(), logits.end());
    scratch.occurrences.resize(logits.size());
    change_logits(params, prompt, generated, scratch.occurrences, scratch.logits);
    logits = scratch.logits;
  }
  const LargestLogit largest = largest_logit(logits);
  // Nothing to choose from, or a token beside which nothing else has any probability.
  if (!std::isfinite(largest.value) || params.temperature < kGreedyTemperature) {
    return largest.token;
  }
  TokenWeights& weights = scratch.weights;
  weights.assign(logits, params.temperature);
  if (params.min_p > 0) weights.keep_min_p(params.min_p);
  if (params.top_k > 0) weights.keep_top_k(params.top_k);
  if (params.top_p < 1) weights.keep_top_p(params.top_p);
  return weights.draw(uniform_number(params.seed, generated.size()));
}

}  // namespace

SampledToken sample(std::span<const float> logits,
                    const SamplingParams& params,
                    std::span<const std::int32_t> prompt,
                    std::span<const std::int32_t> generated) {
  SampledToken sampled;
  sampled.token = choose(logits, params, prompt, generated);
  if (params.logprobs < 0) return sampled;
  const float largest = largest_logit(logits).value;
  const double log_denominator = std::log(softmax_denominator(logits, largest));
  const auto logprob = [&](float logit) {
    return static_cast<float>(static_cast<double>(logit) - static_cast<double>(largest) -
                              log_denominator);
  };
  sampled.logprob = logprob(logits[static_cast<std::size_t>(sampled.token)]);
  sampled.top = largest_logits(logits, params.logprobs);
  for (TokenLogprob& other : sampled.top) other.logprob = logprob(other.logprob);
  return sampled;
}

double log_probability(std::span<const float> logits, std::int32_t token) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(logit - max);
  return logits[static_cast<std::size_t>(token)] - max - std::log(sum);
}

}  // namespace moiety
