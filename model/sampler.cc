#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

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

std::int32_t greedy(std::span<const float> logits) {
  return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace

std::int32_t sample(std::span<const float> logits,
                    const SamplingParams& params,
                    std::uint64_t index) {
  if (params.temperature <= 0) return greedy(logits);
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  if (params.top_p < 1) {  // the nucleus is taken from the most probable token down
    std::sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
      const float la = logits[static_cast<std::size_t>(a)];
      const float lb = logits[static_cast<std::size_t>(b)];
      return la != lb ? la > lb : a < b;
    });
  }
  const double max = *std::max_element(logits.begin(), logits.end());
  std::vector<double> weight(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    weight[i] = std::exp((logits[static_cast<std::size_t>(order[i])] - max) / params.temperature);
  }
  const double total = std::accumulate(weight.begin(), weight.end(), 0.0);
  double nucleus = 0;
  std::size_t count = 0;
  while (count < weight.size() &&
         (count == 0 || params.top_p >= 1 || nucleus < params.top_p * total)) {
    nucleus += weight[count++];
  }
  const double uniform = static_cast<double>(mix(mix(params.seed) ^ index) >> 11) * 0x1p-53;
  double left = uniform * nucleus;
  for (std::size_t i = 0; i < count; ++i) {
    left -= weight[i];
    if (left < 0) return order[i];
  }
  return greedy(logits);  // rounding left a rest
}

double log_probability(std::span<const float> logits, std::int32_t token) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(logit - max);
  return logits[static_cast<std::size_t>(token)] - max - std::log(sum);
}

}  // namespace moiety
