#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "model/sampler.h"
#include "model/softmax_blocks.h"

namespace moiety {

/// The largest logit of a row and where it is. Values that are no number count as minus infinity.
struct LargestLogit {
  float value = -std::numeric_limits<float>::infinity();
  std::int32_t token = 0;  ///< the lowest id that has it
};
LargestLogit largest_logit(std::span<const float> logits);

/// sum exp(logit - largest) over the row, to about 1e-7 of itself.
double softmax_denominator(std::span<const float> logits, float largest);

/// The n most probable tokens of a row, descending, equals by ascending id; `logprob` holds the
/// logit.
std::vector<TokenLogprob> largest_logits(std::span<const float> logits, std::int32_t n);

/// The softmax of one row, what truncation leaves of it, and a draw from that.
///
/// Tokens are ordered by (logit descending, id ascending). What is kept is always a beginning of
/// that order, so it is described by its last token, and only the few tokens around a boundary are
/// ever put in order. Sums run over blocks of the row in a fixed order: equal rows give equal bits.
/// Reusable; one thread at a time.
class TokenWeights {
 public:
  /// Starts with all tokens. `logits` stays unchanged while the object is used; finite or minus
  /// infinity, at least one finite. temperature >= kGreedyTemperature.
  void assign(std::span<const float> logits, float temperature);

  // Each keeps fewer tokens, and always the first.
  void keep_min_p(float min_p);         ///< in (0, 1]
  void keep_top_k(std::int32_t top_k);  ///< at least 1
  void keep_top_p(float top_p);         ///< in [0, 1)

  /// The token at `uniform` in [0, 1) of the kept weights, which lie one after another by id.
  std::int32_t draw(double uniform) const;

 private:
  /// The last token that is kept.
  struct Boundary {
    float logit = -std::numeric_limits<float>::infinity();
    std::int32_t token = std::numeric_limits<std::int32_t>::max();
  };

  const float* block(std::size_t index) const;
  bool keeps(std::size_t token) const;
  void set_boundary(Boundary boundary);
  /// Moves the boundary to the first token at which `count` tokens or `mass` of weight are
  /// reached, if that comes before the present one.
  void cut(std::int64_t count, double mass);
  /// The same, among the tokens whose logits are at least `floor`; false: they do not suffice.
  bool cut_above(float floor, std::int64_t count, double mass);
  void set_boundary_among_candidates(std::int64_t count, double mass);

  const SoftmaxBlocks& loops_ = softmax_blocks();
  std::span<const float> logits_;
  std::array<float, kSoftmaxBlock> tail_;  // the last block, filled up
  float max_ = 0;
  float temperature_ = 1;
  Boundary last_;
  double kept_mass_ = 0;
  std::vector<float> weights_;      // exp((logit - max) / temperature), whole blocks
  std::vector<float> block_max_;    // logits
  std::vector<double> block_kept_;  // sums of the kept weights
  // Scratch of cut().
  struct Bucket {
    double mass = 0;
    std::int64_t count = 0;
  };
  std::vector<Bucket> buckets_;
  std::vector<std::int32_t> candidates_;
};

}  // namespace moiety
