#include "bench/step_cost.h"

#include <algorithm>
#include <string>

#include "common/check.h"

namespace moiety::bench {
namespace {

double num_elements(const ExpectedTensor& tensor) {
  double count = 1;
  for (const std::int64_t size : tensor.shape) count *= static_cast<double>(size);
  return count;
}

}  // namespace

Cost& Cost::operator+=(const Cost& other) {
  bytes += other.bytes;
  operations += other.operations;
  return *this;
}

StepCost& StepCost::operator+=(const StepCost& other) {
  dense += other.dense;
  experts += other.experts;
  attention += other.attention;
  head += other.head;
  return *this;
}

double limit_seconds(const Cost& cost, const MachineRates& rates) {
  return std::max(cost.bytes / rates.dram_bytes_per_second,
                  cost.operations / rates.matrix_operations_per_second);
}

double limit_seconds(const StepCost& cost, const MachineRates& rates) {
  return limit_seconds(cost.dense, rates) + limit_seconds(cost.experts, rates) +
         limit_seconds(cost.attention, rates) + limit_seconds(cost.head, rates);
}

CostModel::CostModel(const Architecture& architecture, DType dense_dtype, DType expert_dtype)
    : layers_(architecture.layers.size()),
      hidden_(architecture.hidden_size),
      head_parameters_(static_cast<double>(architecture.vocab_size) * architecture.hidden_size),
      q_size_(architecture.q_size()),
      kv_size_(architecture.kv_size()),
      dense_bytes_(static_cast<double>(dtype_bytes(dense_dtype))),
      expert_dtype_(expert_dtype) {
  // What the checkpoint has in a layer besides its routed experts is dense, whatever it is.
  const std::vector<ExpectedTensor> tensors = expected_tensors(architecture);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const auto index = static_cast<std::int32_t>(i);
    const MoeDescription& moe = architecture.layers[i].moe;
    Layer& layer = layers_[i];
    layer.num_routed = moe.num_routed;
    layer.window = architecture.layers[i].window;
    if (moe.num_routed > 0) {
      layer.expert_parameters = static_cast<double>(architecture.expert_parameters(index));
      layer.expert_channels = 2.0 * moe.intermediate + architecture.hidden_size;
    }
    const std::string prefix = architecture.layer_prefix(index);
    for (const ExpectedTensor& tensor : tensors) {
      if (tensor.name.starts_with(prefix)) layer.dense_parameters += num_elements(tensor);
    }
    layer.dense_parameters -= layer.num_routed * layer.expert_parameters;
  }
}

double CostModel::expert_bytes(std::size_t layer) const {
  const double scales = expert_dtype_ == DType::kI8 ? 4 * layers_[layer].expert_channels : 0;
  return static_cast<double>(dtype_bytes(expert_dtype_)) * layers_[layer].expert_parameters +
         scales;
}

StepCost CostModel::step(std::span<const ChunkSize> chunks,
                         std::span<const std::vector<std::int32_t>> topk_ids) const {
  MOIETY_CHECK(topk_ids.size() == layers_.size(), "one list of selected experts per layer");
  double rows = 0, logit_rows = 0;
  for (const ChunkSize& chunk : chunks) {
    rows += chunk.tokens;
    logit_rows += chunk.logit_rows;
  }
  StepCost cost;
  cost.dense.bytes += rows * hidden_ * dense_bytes_;  // of the embedding
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    cost.dense += {layer.dense_parameters * dense_bytes_, 2 * rows * layer.dense_parameters};

    std::vector<bool> used(static_cast<std::size_t>(layer.num_routed));
    double pairs = 0;
    for (const std::int32_t expert : topk_ids[i]) {
      if (expert < 0) continue;
      used.at(static_cast<std::size_t>(expert)) = true;
      ++pairs;
    }
    const auto distinct = static_cast<double>(std::count(used.begin(), used.end(), true));
    cost.experts += {distinct * expert_bytes(i), 2 * pairs * layer.expert_parameters};

    for (const ChunkSize& chunk : chunks) {
      const auto reach = [&](std::int32_t position) {
        return layer.window > 0 ? std::min(position + 1, layer.window) : position + 1;
      };
      double positions = 0;
      for (std::int32_t t = 0; t < chunk.tokens; ++t) positions += reach(chunk.start + t);
      // From the first position that the first token sees to the last one.
      const std::int32_t seen = chunk.tokens == 0 ? 0 : chunk.tokens - 1 + reach(chunk.start);
      cost.attention += {2.0 * seen * kv_size_ * dense_bytes_, 4 * positions * q_size_};
    }
  }
  if (logit_rows > 0) {
    cost.head = {head_parameters_ * dense_bytes_, 2 * logit_rows * head_parameters_};
  }
  return cost;
}

}  // namespace moiety::bench
