#include "checkpoint/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace moiety {
namespace {

constexpr double kTau = 2 * std::numbers::pi;

// Llama 3: wavelengths beyond the original context are stretched by `factor`, those well inside it
// stay, and those between are blended.
double llama3_frequency(const RopeParameters& rope, double frequency) {
  const double context = rope.original_positions;
  const double wavelength = kTau / frequency;
  if (wavelength > context / rope.low_freq_factor) return frequency / rope.factor;
  if (wavelength < context / rope.high_freq_factor) return frequency;
  const double smooth = (context / wavelength - rope.low_freq_factor) /
                        (rope.high_freq_factor - rope.low_freq_factor);
  return (1 - smooth) * frequency / rope.factor + smooth * frequency;
}

// YaRN (Peng et al., 2023), "NTK-by-parts": the range of pairs of elements over which interpolation
// takes over from extrapolation.
struct YarnRange {
  double low, high;
};

YarnRange yarn_range(const RopeParameters& rope, std::int32_t head_dim) {
  // The (fractional) pair that turns `rotations` times within the original context.
  const auto pair_of = [&](double rotations) {
    return head_dim * std::log(rope.original_positions / (rotations * kTau)) /
           (2 * std::log(rope.theta));
  };
  double low = pair_of(rope.beta_fast);
  double high = pair_of(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, head_dim - 1.0);
  if (low == high) high += 0.001;
  return {low, high};
}

double yarn_frequency(const RopeParameters& rope,
                      const YarnRange& range,
                      double frequency,
                      std::int32_t pair) {
  const double interpolated = std::clamp((pair - range.low) / (range.high - range.low), 0.0, 1.0);
  return frequency / rope.factor * interpolated + frequency * (1 - interpolated);
}

double yarn_attention_factor(const RopeParameters& rope) {
  const auto scale = [&](double weight) {
    return rope.factor <= 1 ? 1.0 : 0.1 * weight * std::log(rope.factor) + 1.0;
  };
  if (rope.attention_factor != 0) return rope.attention_factor;
  if (rope.mscale != 0 && rope.mscale_all_dim != 0) {
    return scale(rope.mscale) / scale(rope.mscale_all_dim);
  }
  return scale(1);
}

}  // namespace

RopeDescription describe_rope(const RopeParameters& rope, std::int32_t head_dim) {
  using Kind = RopeParameters::Kind;
  RopeDescription description;
  description.theta = rope.theta;
  YarnRange range{};
  if (rope.kind == Kind::kYarn) {
    range = yarn_range(rope, head_dim);
    description.attention_factor = static_cast<float>(yarn_attention_factor(rope));
  }
  for (std::int32_t pair = 0; pair < head_dim / 2; ++pair) {
    double frequency = std::pow(rope.theta, -2.0 * pair / head_dim);
    if (rope.kind == Kind::kLinear) frequency /= rope.factor;
    if (rope.kind == Kind::kLlama3) frequency = llama3_frequency(rope, frequency);
    if (rope.kind == Kind::kYarn) frequency = yarn_frequency(rope, range, frequency, pair);
    description.frequencies.push_back(static_cast<float>(frequency));
  }
  return description;
}

}  // namespace moiety
