#include "cli/model_size.h"

#include <algorithm>

namespace moiety::cli {

ModelSize::ModelSize(const Architecture& architecture, DType dtype, DType expert_dtype)
    : dtype_(dtype), expert_dtype_(expert_dtype) {
  for (const ExpectedTensor& tensor : expected_tensors(architecture)) {
    std::int64_t count = 1;
    for (const std::int64_t size : tensor.shape) count *= size;
    dense_ += count;
  }
  for (std::int32_t i = 0; i < architecture.num_layers(); ++i) {
    const MoeDescription& moe = architecture.layers[static_cast<std::size_t>(i)].moe;
    if (moe.num_routed == 0) continue;
    layers_.push_back({architecture.expert_parameters(i),
                       2 * std::int64_t{moe.intermediate} + architecture.hidden_size,
                       moe.num_routed, moe.num_shared, moe.top_k});
    dense_ -= layers_.back().one * moe.num_routed;
  }
}

std::int32_t ModelSize::routed_kept(const Layer& layer, std::int32_t keep) const {
  return keep == 0 ? layer.routed : std::clamp(keep - layer.shared, 0, layer.routed);
}

std::int64_t ModelSize::parameters(std::int32_t keep) const {
  std::int64_t count = dense_;
  for (const Layer& layer : layers_) count += layer.one * routed_kept(layer, keep);
  return count;
}

std::int64_t ModelSize::active_parameters() const {
  std::int64_t count = dense_;
  for (const Layer& layer : layers_) count += layer.one * layer.top_k;
  return count;
}

std::int64_t ModelSize::dense_bytes() const {
  return dense_ * static_cast<std::int64_t>(dtype_bytes(dtype_));
}

std::int64_t ModelSize::expert_bytes(std::int32_t keep) const {
  std::int64_t bytes = 0;
  for (const Layer& layer : layers_) {
    const std::int64_t scales = expert_dtype_ == DType::kI8 ? 4 * layer.channels : 0;
    bytes += routed_kept(layer, keep) *
             (layer.one * static_cast<std::int64_t>(dtype_bytes(expert_dtype_)) + scales);
  }
  return bytes;
}

std::vector<std::int32_t> ModelSize::kept_counts() const {
  std::int32_t most = 0, least = 1;
  for (const Layer& layer : layers_) {
    most = std::max(most, layer.routed + layer.shared);
    least = std::max(least, layer.top_k + layer.shared);
  }
  std::vector<std::int32_t> counts;
  for (std::int32_t keep = most; keep >= least; keep /= 2) counts.push_back(keep);
  return counts;
}

}  // namespace moiety::cli
