#include "bench/step_cost.h"

#include <gtest/gtest.h>

#include "bench/shapes.h"

namespace moiety::bench {
namespace {

Architecture shape_architecture(const std::string& name, std::int32_t layers = 0) {
  const auto shape = find_shape(name);
  EXPECT_TRUE(shape);
  auto architecture = parse_architecture(shape_config(*shape, "bfloat16", layers), false);
  EXPECT_TRUE(architecture) << name;
  return *architecture;
}

/// Every row selects the experts 0 .. top_k - 1, unless `spread`: then row r begins at r * top_k.
std::vector<std::vector<std::int32_t>> choices(const Architecture& arch, int rows, bool spread) {
  std::vector<std::vector<std::int32_t>> all;
  for (const LayerDescription& layer : arch.layers) {
    all.emplace_back();
    for (int i = 0; i < rows * layer.moe.top_k; ++i)
      all.back().push_back((spread ? i : i % layer.moe.top_k) % layer.moe.num_routed);
  }
  return all;
}

TEST(StepCost, CountsOneDecodedTokenByHand) {
  const Architecture arch = shape_architecture("olmoe-1.8b");
  const CostModel costs(arch, DType::kBF16, DType::kBF16);
  const ChunkSize chunk{99, 1, 1};
  const StepCost cost = costs.step({&chunk, 1}, choices(arch, 1, false));
  const double hidden = 1024, layers = 16, width = 512, vocab = 50432;
  // q, k, v, o; two norms of the layer, two of q and k; the gate.
  const double dense = 4 * hidden * hidden + 4 * hidden + 64 * hidden;
  EXPECT_DOUBLE_EQ(cost.dense.bytes, 2 * (layers * dense + hidden));
  EXPECT_DOUBLE_EQ(cost.dense.operations, 2 * layers * dense);
  EXPECT_DOUBLE_EQ(cost.experts.bytes, 2 * layers * 8 * 3 * hidden * width);
  EXPECT_DOUBLE_EQ(cost.experts.operations, 2 * layers * 8 * 3 * hidden * width);
  EXPECT_DOUBLE_EQ(cost.attention.bytes, 2 * layers * 2 * 100 * hidden);
  EXPECT_DOUBLE_EQ(cost.attention.operations, 4 * layers * 100 * hidden);
  EXPECT_DOUBLE_EQ(cost.head.bytes, 2 * hidden * vocab);
  EXPECT_DOUBLE_EQ(cost.head.operations, 2 * hidden * vocab);
}

TEST(StepCost, CountsDistinctExpertsOnceAndPairsAlways) {
  const Architecture arch = shape_architecture("olmoe-1.8b");
  const CostModel costs(arch, DType::kBF16, DType::kBF16);
  const std::vector<ChunkSize> chunks(4, ChunkSize{10, 1, 1});
  const StepCost same = costs.step(chunks, choices(arch, 4, false));
  const StepCost spread = costs.step(chunks, choices(arch, 4, true));
  EXPECT_DOUBLE_EQ(spread.experts.bytes, 4 * same.experts.bytes);
  EXPECT_DOUBLE_EQ(spread.experts.operations, same.experts.operations);
  auto failed = choices(arch, 4, true);
  for (auto& ids : failed) std::fill(ids.begin() + 8, ids.end(), -1);
  EXPECT_DOUBLE_EQ(costs.step(chunks, failed).experts.bytes, same.experts.bytes);
}

TEST(StepCost, Int8ExpertsHaveAByteAWeightAndScales) {
  const Architecture arch = shape_architecture("olmoe-1.8b");
  const CostModel costs(arch, DType::kBF16, DType::kI8);
  EXPECT_DOUBLE_EQ(costs.expert_bytes(0), 3 * 1024 * 512 + 4 * (512 + 512 + 1024));
}

TEST(StepCost, PrefillChunksAddUpToTheWholePromptButReadWeightsAgain) {
  const Architecture arch = shape_architecture("tiny");
  const CostModel costs(arch, DType::kF32, DType::kF32);
  const ChunkSize whole{0, 128, 1}, first{0, 100, 0}, second{100, 28, 1};
  const StepCost once = costs.step({&whole, 1}, choices(arch, 128, true));
  StepCost twice = costs.step({&first, 1}, choices(arch, 100, true));
  EXPECT_DOUBLE_EQ(twice.head.bytes, 0);
  const double dense = twice.dense.bytes;
  twice += costs.step({&second, 1}, choices(arch, 28, true));
  EXPECT_DOUBLE_EQ(twice.dense.operations, once.dense.operations);
  EXPECT_DOUBLE_EQ(twice.experts.operations, once.experts.operations);
  EXPECT_DOUBLE_EQ(twice.attention.operations, once.attention.operations);
  EXPECT_DOUBLE_EQ(twice.head.operations, once.head.operations);
  EXPECT_GT(twice.dense.bytes, 1.9 * dense);
  // Keys and values: 100 positions, then 128.
  EXPECT_DOUBLE_EQ(twice.attention.bytes, once.attention.bytes * (100 + 128) / 128);
}

TEST(StepCost, AttentionStaysInTheWindow) {
  Architecture arch = shape_architecture("tiny");
  const ChunkSize chunk{100, 20, 0};
  const auto ids = choices(arch, 20, true);
  for (LayerDescription& layer : arch.layers) layer.window = 32;
  const CostModel costs(arch, DType::kBF16, DType::kBF16);
  const StepCost cost = costs.step({&chunk, 1}, ids);
  EXPECT_DOUBLE_EQ(cost.attention.operations, 4.0 * 4 * 20 * 32 * 256);
  EXPECT_DOUBLE_EQ(cost.attention.bytes, 4.0 * 2 * 2 * (32 + 19) * 256);
}

TEST(StepCost, EveryParameterIsDenseOrExpertOrHeadOrEmbedding) {
  for (const Shape& shape : all_shapes()) {
    const Architecture arch = shape_architecture(std::string(shape.name));
    double parameters = 0;
    for (const ExpectedTensor& tensor : expected_tensors(arch)) {
      double count = 1;
      for (const std::int64_t size : tensor.shape) count *= static_cast<double>(size);
      parameters += count;
    }
    // All experts of all layers selected: everything is read.
    std::vector<std::vector<std::int32_t>> all;
    for (const LayerDescription& layer : arch.layers) {
      all.emplace_back();
      for (std::int32_t e = 0; e < layer.moe.num_routed; ++e) all.back().push_back(e);
    }
    const CostModel costs(arch, DType::kBF16, DType::kBF16);
    const ChunkSize chunk{0, 1, 1};
    const StepCost cost = costs.step({&chunk, 1}, all);
    const double head = static_cast<double>(arch.vocab_size) * arch.hidden_size;
    const double counted = (cost.dense.bytes + cost.experts.bytes + cost.head.bytes) / 2 -
                           arch.hidden_size;  // the embedding's row
    const double embedding = arch.tie_embeddings ? 0 : head;
    EXPECT_DOUBLE_EQ(counted, parameters - embedding - arch.hidden_size) << shape.name;
  }
}

TEST(StepCost, LimitIsTheSumOverPhasesOfTheLongerOfBoth) {
  const MachineRates rates{10, 100};
  StepCost cost;
  cost.dense = {20, 100};    // 2 s of reading
  cost.experts = {10, 500};  // 5 s of computing
  cost.attention = {1, 1};   // 0.1 s
  cost.head = {0, 0};
  EXPECT_DOUBLE_EQ(limit_seconds(cost, rates), 7.1);
}

}  // namespace
}  // namespace moiety::bench
