#include "kernels/packed_matrix.h"

#include <bit>
#include <cstdint>

#include "tests/kernels/tolerance.h"

namespace moiety::kernels {
namespace {

class PackedShapes : public testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(PackedShapes, ReadsBackF32ExactlyAndBf16Rounded) {
  const auto [n, k] = GetParam();
  const auto weights = random_floats(static_cast<std::size_t>(n) * k, 7);
  const PackedMatrix f32(DType::kF32, n, k, weights);
  const PackedMatrix rounded(DType::kBF16, n, k, weights);
  for (int row = 0; row < n; ++row) {
    for (int column = 0; column < k; ++column) {
      const float weight = weights[static_cast<std::size_t>(row) * k + column];
      ASSERT_EQ(f32.at(row, column), weight);
      ASSERT_EQ(rounded.at(row, column), bf16_to_float(float_to_bf16(weight)));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels,
                         PackedShapes,
                         testing::Combine(testing::Values(0, 1, 15, 16, 17, 33),
                                          testing::Values(0, 1, 2, 7)));

// The layout is a contract with kernels that are yet to come, so its very positions are tested.
TEST(PackedMatrix, F32IsPanelThenKThenColumn) {
  std::vector<float> weights(17 * 3);
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(i);
  const PackedMatrix w(DType::kF32, 17, 3, weights);
  EXPECT_EQ(w.num_panels(), 2);
  EXPECT_EQ(w.num_bytes(), 2u * 3 * 16 * 4);
  EXPECT_EQ(w.panel_f32(0)[1 * 16 + 5], weights[5 * 3 + 1]);
  EXPECT_EQ(w.panel_f32(1)[2 * 16 + 0], weights[16 * 3 + 2]);
  EXPECT_EQ(w.panel_f32(1)[2 * 16 + 1], 0.0f) << "columns beyond n are zero";
  EXPECT_EQ(std::bit_cast<std::uintptr_t>(w.panel_f32(0)) % 64, 0u);
}

TEST(PackedMatrix, Bf16IsPanelThenPairThenColumn) {
  std::vector<float> weights(17 * 3);
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(i + 1);
  const PackedMatrix w(DType::kBF16, 17, 3, weights);
  EXPECT_EQ(w.num_bytes(), 2u * 2 * 16 * 2 * 2);
  EXPECT_EQ(bf16_to_float(w.panel_bf16(0)[5 * 2 + 0]), weights[5 * 3 + 0]);
  EXPECT_EQ(bf16_to_float(w.panel_bf16(0)[5 * 2 + 1]), weights[5 * 3 + 1]);
  EXPECT_EQ(bf16_to_float(w.panel_bf16(0)[(16 + 5) * 2]), weights[5 * 3 + 2]);
  EXPECT_EQ(w.panel_bf16(0)[(16 + 5) * 2 + 1], 0) << "the pair of an odd last k is zero";
  EXPECT_EQ(bf16_to_float(w.panel_bf16(1)[0]), weights[16 * 3]);
}

TEST(PackedMatrix, MovingKeepsTheWeightsInPlace) {
  PackedMatrix first(DType::kF32, 1, 2, std::vector<float>{3, 4});
  const float* panel = first.panel_f32(0);
  const PackedMatrix second = std::move(first);
  EXPECT_EQ(second.panel_f32(0), panel);
  EXPECT_EQ(second.at(0, 1), 4.0f);
}

}  // namespace
}  // namespace moiety::kernels
