#pragma once

#include <cstdint>
#include <span>

#include "kernels/variant.h"

namespace moiety::kernels {

/// How selected experts are weighed: the softmax over the present logits at the top-k, divided by
/// their sum when `norm_topk` (which is the softmax over the top-k alone), times `scale`.
struct GateRule {
  bool norm_topk = false;
  float scale = 1;
};

/// Selects experts of one token from raw gate logits.
///
///   logits  [num_routed]   raw, fp32
///   kept    [num_routed]   1 = present, 0 = absent; empty = all present. At least top_k are
///   present. topk_ids     [top_k]   out, by descending probability; ties go to the lower id
///   topk_weights [top_k]   out: as `rule` says
///
/// Returns the masked mass: the share of the softmax over all routed logits that falls on absent
/// experts (0 when `kept` is empty). The mask acts as minus infinity before the softmax, which is
/// the same, bit for bit, as a gate without the absent rows: sums run over present experts only, in
/// ascending id order.
float select_experts(Variant variant,
                     std::span<const float> logits,
                     std::span<const std::uint8_t> kept,
                     GateRule rule,
                     std::span<std::int32_t> topk_ids,
                     std::span<float> topk_weights);

/// The softmax weights of given experts under the same rule (replay of another gate's choice).
void weigh_experts(Variant variant,
                   std::span<const float> logits,
                   std::span<const std::uint8_t> kept,
                   GateRule rule,
                   std::span<const std::int32_t> topk_ids,
                   std::span<float> topk_weights);

/// Softmax over all of `logits`, in fp32: p[i] = exp(z[i] - max) / sum.
void softmax(std::span<const float> logits, std::span<float> probabilities);

}  // namespace moiety::kernels
