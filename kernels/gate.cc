#include "kernels/gate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "common/check.h"
#include "kernels/implementations.h"

namespace moiety::kernels {
namespace {

constexpr std::size_t kChunk = 64;

ExpFn* exp_kernel(Variant variant) {
  switch (variant) {
    case Variant::kReference:
      return reference::exp_shifted;
    case Variant::kPlain:
      return plain::exp_shifted;
    case Variant::kAvx2:
      return avx2::exp_shifted;
    case Variant::kAvx512:
    case Variant::kAvx512Bf16:
    case Variant::kAmx:
      return avx512::exp_shifted;
  }
  check_failed("unknown variant", __FILE__, __LINE__);
}

bool is_present(std::span<const std::uint8_t> kept, std::size_t expert) {
  return kept.empty() || kept[expert] != 0;
}

/// The largest logit of the experts whose presence is `present`; minus infinity if there is none.
float max_logit(std::span<const float> logits, std::span<const std::uint8_t> kept, bool present) {
  float max = -std::numeric_limits<float>::infinity();
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (is_present(kept, i) == present) max = std::max(max, logits[i]);
  }
  return max;
}

/// Sum of exp(logit - shift) over the experts whose presence is `present`, in ascending order. The
/// terms of the others are computed beside them and left out, so that the sum is that of a shorter
/// list.
double exp_sum(ExpFn* exp_shifted,
               std::span<const float> logits,
               std::span<const std::uint8_t> kept,
               bool present,
               float shift) {
  double sum = 0;
  std::array<double, kChunk> e;
  for (std::size_t begin = 0; begin < logits.size(); begin += kChunk) {
    const std::size_t size = std::min(kChunk, logits.size() - begin);
    exp_shifted(logits.data() + begin, shift, size, e.data());
    for (std::size_t i = 0; i < size; ++i) {
      if (is_present(kept, begin + i) == present) sum += e[i];
    }
  }
  return sum;
}

/// Writes the ids of the topk_ids.size() largest present logits, descending, ties by id. A NaN
/// ranks with minus infinity, so that a broken checkpoint gives NaN weights and not a wild id.
void top_k(std::span<const float> logits,
           std::span<const std::uint8_t> kept,
           std::span<std::int32_t> topk_ids) {
  const auto rank = [&](std::size_t i) {
    return std::isnan(logits[i]) ? -std::numeric_limits<float>::infinity() : logits[i];
  };
  std::size_t found = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (!is_present(kept, i)) continue;
    std::size_t slot = found;
    while (slot > 0 && rank(i) > rank(static_cast<std::size_t>(topk_ids[slot - 1]))) --slot;
    if (slot == topk_ids.size()) continue;
    if (found < topk_ids.size()) ++found;
    for (std::size_t j = found - 1; j > slot; --j) topk_ids[j] = topk_ids[j - 1];
    topk_ids[slot] = static_cast<std::int32_t>(i);
  }
  MOIETY_CHECK(found == topk_ids.size(), "fewer experts are present than a token selects");
}

/// The absent experts' share of the softmax over all. Each side's sum is relative to its own
/// maximum, so neither overflows, and the share is formed directly, so it loses nothing where it is
/// small.
float masked_mass(ExpFn* exp_shifted,
                  std::span<const float> logits,
                  std::span<const std::uint8_t> kept,
                  float present_max,
                  double present_sum) {
  if (kept.empty()) return 0;
  const float absent_max = max_logit(logits, kept, false);
  if (absent_max == -std::numeric_limits<float>::infinity()) return 0;
  const double absent_sum = exp_sum(exp_shifted, logits, kept, false, absent_max);
  const double max = std::max(present_max, absent_max);
  const double absent = absent_sum * std::exp(absent_max - max);
  const double present = present_sum * std::exp(present_max - max);
  return static_cast<float>(absent / (absent + present));
}

/// topk_weights[i] = scale * exp(logit - max) / sum, with the sum over the selected experts only
/// when norm_topk.
void weigh(ExpFn* exp_shifted,
           std::span<const float> logits,
           GateRule rule,
           float max,
           double sum,
           std::span<const std::int32_t> topk_ids,
           std::span<float> topk_weights) {
  const auto exp_of = [&](std::int32_t id) {
    double e = 0;
    exp_shifted(&logits[static_cast<std::size_t>(id)], max, 1, &e);
    return e;
  };
  double selected = 0;
  for (std::int32_t id : topk_ids) selected += exp_of(id);
  const double denominator = rule.norm_topk ? selected : sum;
  for (std::size_t slot = 0; slot < topk_ids.size(); ++slot) {
    topk_weights[slot] = static_cast<float>(rule.scale * exp_of(topk_ids[slot]) / denominator);
  }
}

void check_sizes(std::span<const float> logits,
                 std::span<const std::uint8_t> kept,
                 std::span<const std::int32_t> topk_ids,
                 std::span<const float> topk_weights) {
  MOIETY_CHECK(kept.empty() || kept.size() == logits.size(), "one mask entry per routed expert");
  MOIETY_CHECK(topk_ids.size() == topk_weights.size(), "one weight per selected expert");
}

}  // namespace

float select_experts(Variant variant,
                     std::span<const float> logits,
                     std::span<const std::uint8_t> kept,
                     GateRule rule,
                     std::span<std::int32_t> topk_ids,
                     std::span<float> topk_weights) {
  check_sizes(logits, kept, topk_ids, topk_weights);
  top_k(logits, kept, topk_ids);
  ExpFn* exp_shifted = exp_kernel(variant);
  const float max = max_logit(logits, kept, true);
  const double sum = exp_sum(exp_shifted, logits, kept, true, max);
  weigh(exp_shifted, logits, rule, max, sum, topk_ids, topk_weights);
  return masked_mass(exp_shifted, logits, kept, max, sum);
}

void weigh_experts(Variant variant,
                   std::span<const float> logits,
                   std::span<const std::uint8_t> kept,
                   GateRule rule,
                   std::span<const std::int32_t> topk_ids,
                   std::span<float> topk_weights) {
  check_sizes(logits, kept, topk_ids, topk_weights);
  for (std::int32_t id : topk_ids) {
    MOIETY_CHECK(id >= 0 && static_cast<std::size_t>(id) < logits.size() &&
                     is_present(kept, static_cast<std::size_t>(id)),
                 "an absent expert was selected");
  }
  ExpFn* exp_shifted = exp_kernel(variant);
  const float max = max_logit(logits, kept, true);
  const double sum = exp_sum(exp_shifted, logits, kept, true, max);
  weigh(exp_shifted, logits, rule, max, sum, topk_ids, topk_weights);
}

void softmax(std::span<const float> logits, std::span<float> probabilities) {
  MOIETY_CHECK(logits.size() == probabilities.size(), "one probability per logit");
  const float max = max_logit(logits, {}, true);
  const double sum = exp_sum(plain::exp_shifted, logits, {}, true, max);
  std::array<double, kChunk> e;
  for (std::size_t begin = 0; begin < logits.size(); begin += kChunk) {
    const std::size_t size = std::min(kChunk, logits.size() - begin);
    plain::exp_shifted(logits.data() + begin, max, size, e.data());
    for (std::size_t i = 0; i < size; ++i)
      probabilities[begin + i] = static_cast<float>(e[i] / sum);
  }
}

}  // namespace moiety::kernels
