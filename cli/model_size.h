#pragma once

#include <cstdint>
#include <vector>

#include "checkpoint/architecture.h"
#include "common/dtype.h"

namespace moiety::cli {

/// Parameters and bytes of a model, whole or with fewer routed experts.
///
/// `keep` counts the checkpoint's expert list of each layer, with the shared experts that are part
/// of it (EMO's); 0 = all; layers with fewer keep what they have. The dense part is everything
/// else: attention, embeddings, gates, dense layers, shared experts.
class ModelSize {
 public:
  /// As served in these types; int8 experts have a float per output channel besides their weights.
  ModelSize(const Architecture& architecture, DType dtype, DType expert_dtype);

  std::int64_t parameters(std::int32_t keep) const;
  /// What one token uses: all but the routed experts that it does not select.
  std::int64_t active_parameters() const;
  std::int64_t dense_bytes() const;
  std::int64_t expert_bytes(std::int32_t keep) const;
  /// N, N/2, N/4, ... down to what a token selects.
  std::vector<std::int32_t> kept_counts() const;

 private:
  struct Layer {
    std::int64_t one = 0;       // parameters of an expert
    std::int64_t channels = 0;  // outputs of its matrices
    std::int32_t routed = 0, shared = 0, top_k = 0;
  };
  std::int32_t routed_kept(const Layer& layer, std::int32_t keep) const;
  std::vector<Layer> layers_;
  std::int64_t dense_ = 0;  // parameters
  DType dtype_, expert_dtype_;
};

}  // namespace moiety::cli
