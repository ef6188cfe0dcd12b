#include "experts/store.h"

#include <cstring>

#include "tests/golden/golden_support.h"

namespace moiety {
namespace {

using testing::fixture_folder;
using testing::must;
using testing::source_path;

/// Expert `id`'s rows of a matrix, read through the whole tensor.
std::vector<float> rows_of(const Checkpoint& checkpoint, const MatrixSource& source) {
  const auto all = must(checkpoint.tensors().read_floats(source.tensor));
  const auto begin = all.begin() + source.first_row * source.columns;
  return {begin, begin + std::int64_t{source.rows} * source.columns};
}

void expect_packed(const kernels::PackedMatrix& packed, const std::vector<float>& expected) {
  ASSERT_EQ(static_cast<std::size_t>(packed.n()) * static_cast<std::size_t>(packed.k()),
            expected.size());
  for (std::int32_t row = 0; row < packed.n(); ++row) {
    for (std::int32_t column = 0; column < packed.k(); ++column) {
      ASSERT_EQ(packed.at(row, column),
                expected[static_cast<std::size_t>(row * packed.k() + column)])
          << row << ", " << column;
    }
  }
}

class StoredExperts : public ::testing::TestWithParam<const char*> {};

TEST_P(StoredExperts, AreThoseOfTheFileAndNoOtherBytesAreRead) {
  const Checkpoint checkpoint = must(Checkpoint::open(source_path(fixture_folder(GetParam()))));
  const Architecture& arch = checkpoint.architecture();
  std::int32_t layer = 0;
  while (arch.layers[static_cast<std::size_t>(layer)].is_dense()) ++layer;
  const std::int32_t expert = arch.layers[static_cast<std::size_t>(layer)].moe.num_routed - 2;
  ExpertStore store(checkpoint, DType::kF32);
  const std::vector<ExpertId> ids = {{layer, expert}};
  ASSERT_TRUE(store.load(ids));

  const FeedForwardSource source = arch.expert_source(layer, expert);
  const DType dtype = checkpoint.tensors().find(source.up_proj.tensor)->dtype;
  const std::uint64_t bytes =
      static_cast<std::uint64_t>(arch.expert_parameters(layer)) * dtype_bytes(dtype);
  EXPECT_EQ(store.bytes_read(), bytes);
  EXPECT_EQ(checkpoint.tensors().bytes_read(), bytes);

  const auto weights = store.find(ids[0]);
  ASSERT_NE(weights, nullptr);
  expect_packed(weights->gate, rows_of(checkpoint, source.gate_proj));
  expect_packed(weights->up, rows_of(checkpoint, source.up_proj));
  expect_packed(weights->down, rows_of(checkpoint, source.down_proj));
}

INSTANTIATE_TEST_SUITE_P(Fixtures,
                         StoredExperts,
                         ::testing::Values("emo",
                                           "mixtral",
                                           "granitemoe",
                                           "deepseek",
                                           "small/mixtral-llama3",
                                           "small/qwen2_moe-sparse",
                                           "small/granitemoe-bias"));

TEST(ExpertStoreTest, ADenseLayerHasNoExpertToLoad) {
  const Checkpoint checkpoint = must(Checkpoint::open(source_path(fixture_folder("deepseek"))));
  ExpertStore store(checkpoint, DType::kF32);
  const std::vector<ExpertId> ids = {{0, 0}};
  const auto loaded = store.load(ids);
  ASSERT_FALSE(loaded);
  EXPECT_NE(loaded.error().message.find("no routed expert 0 in layer 0"), std::string::npos);
  EXPECT_EQ(store.bytes_read(), 0u);
  for (const ExpertId& id : all_routed_experts(checkpoint.architecture())) EXPECT_GT(id.layer, 0);
}

}  // namespace
}  // namespace moiety
