#pragma once

#include <cstddef>
#include <cstdint>

namespace moiety {

/// Logits are worked on in blocks of this size; the caller fills up the last one with minus
/// infinity.
inline constexpr std::size_t kSoftmaxBlock = 64;

/// The vector loops of sampling, each over one block. Every variant has the same 16 partial sums,
/// folded in the same order, and no fused multiply-add: all give the same bits. What is no number
/// counts as minus infinity.
struct SoftmaxBlocks {
  /// The largest logit.
  float (*largest)(const float* logits);
  /// weights = exp((logits - largest) * scale), for logits <= largest and scale > 0, within 2 units
  /// in the last place, 0 where that is below e^-87; null: not stored. Returns their sum.
  double (*weigh)(const float* logits, float largest, float scale, float* weights);
  /// The sum of the weights of logits >= bound (`above`: > bound).
  double (*mass)(const float* logits, const float* weights, float bound, bool above);
  /// How many logits are >= bound (`above`: > bound).
  std::int32_t (*count)(const float* logits, float bound, bool above);
  /// indices = (largest - logits) * scale, rounded down and at most `last`, where logits >= bound
  /// (`above`: > bound); last + 1 elsewhere.
  void (*indices)(const float* logits,
                  float largest,
                  float scale,
                  std::int32_t last,
                  float bound,
                  bool above,
                  std::int32_t* indices);
};

/// Of the machine that this runs on.
const SoftmaxBlocks& softmax_blocks();

// The variants; null where the machine cannot run them.
const SoftmaxBlocks* softmax_blocks_plain();
const SoftmaxBlocks* softmax_blocks_avx2();

}  // namespace moiety
