#include "kernels/packed_matrix.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <random>

#include "common/packed_layout.h"
#include "kernels/implementations.h"
#include "kernels/pack_stream.h"
#include "kernels/weight_memory.h"
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

TEST_P(PackedShapes, TakeTheBytesThatPlansCountWith) {
  const auto [n, k] = GetParam();
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
    EXPECT_EQ(PackedMatrix::unfilled(dtype, n, k).num_bytes(), packed_matrix_bytes(dtype, n, k))
        << dtype_name(dtype);
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels,
                         PackedShapes,
                         testing::Combine(testing::Values(0, 1, 15, 16, 17, 33),
                                          testing::Values(0, 1, 2, 7)));

template <class T>
const T* panel(const PackedMatrix& w, int index) {
  return reinterpret_cast<const T*>(w.panel(index));
}

// The layout is what every kernel reads, so its very positions are tested.
TEST(PackedMatrix, F32IsPanelThenKThenColumn) {
  std::vector<float> weights(17 * 3);
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(i);
  const PackedMatrix w(DType::kF32, 17, 3, weights);
  EXPECT_EQ(w.num_panels(), 2);
  EXPECT_EQ(w.num_bytes(), 2u * 3 * 16 * 4);
  EXPECT_EQ(panel<float>(w, 0)[1 * 16 + 5], weights[5 * 3 + 1]);
  EXPECT_EQ(panel<float>(w, 1)[2 * 16 + 0], weights[16 * 3 + 2]);
  EXPECT_EQ(panel<float>(w, 1)[2 * 16 + 1], 0.0f) << "columns beyond n are zero";
  EXPECT_EQ(std::bit_cast<std::uintptr_t>(w.data()) % 64, 0u);
}

TEST(PackedMatrix, Bf16IsPanelThenPairThenColumn) {
  std::vector<float> weights(17 * 3);
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(i + 1);
  const PackedMatrix w(DType::kBF16, 17, 3, weights);
  EXPECT_EQ(w.num_bytes(), 2u * 2 * 16 * 2 * 2);
  EXPECT_EQ(bf16_to_float(panel<bf16>(w, 0)[5 * 2 + 0]), weights[5 * 3 + 0]);
  EXPECT_EQ(bf16_to_float(panel<bf16>(w, 0)[5 * 2 + 1]), weights[5 * 3 + 1]);
  EXPECT_EQ(bf16_to_float(panel<bf16>(w, 0)[(16 + 5) * 2]), weights[5 * 3 + 2]);
  EXPECT_EQ(panel<bf16>(w, 0)[(16 + 5) * 2 + 1], 0) << "the pair of an odd last k is zero";
  EXPECT_EQ(bf16_to_float(panel<bf16>(w, 1)[0]), weights[16 * 3]);
}

TEST(PackedMatrix, I8IsScaledByColumnAndPanelThenFourThenColumn) {
  const std::vector<float> weights = {1, -2, 0.5f, 0, 1.5f, 0, 0, 0, 0, 0};
  const PackedMatrix w(DType::kI8, 2, 5, weights);
  EXPECT_EQ(w.num_bytes(), 2u * 16 * 4 + 16 * 4);
  EXPECT_EQ(w.scales()[0], 2.0f / 127);
  EXPECT_EQ(w.scales()[1], 0.0f);
  EXPECT_EQ(w.scales()[2], 0.0f) << "columns beyond n";
  EXPECT_EQ(panel<std::uint8_t>(w, 0)[0], 128 + 64);  // 63.5 to even
  EXPECT_EQ(panel<std::uint8_t>(w, 0)[1], 128 - 127);
  EXPECT_EQ(panel<std::uint8_t>(w, 0)[2], 128 + 32);  // 31.75
  EXPECT_EQ(panel<std::uint8_t>(w, 0)[4], 128) << "a column of zeros";
  EXPECT_EQ(panel<std::uint8_t>(w, 0)[64], 128 + 95);  // 95.25
  EXPECT_EQ(w.at(0, 1), -127 * static_cast<double>(2.0f / 127));
  EXPECT_EQ(w.at(1, 0), 0.0f);
}

TEST(PackedMatrix, I8IsWithinHalfAStepOfTheRoundedWeight) {
  const auto weights = random_floats(40 * 77, 3);
  const PackedMatrix w(DType::kI8, 40, 77, weights);
  for (int row = 0; row < 40; ++row) {
    for (int k = 0; k < 77; ++k) {
      const float rounded =
          bf16_to_float(float_to_bf16(weights[static_cast<std::size_t>(row) * 77 + k]));
      ASSERT_LE(std::abs(w.at(row, k) - rounded), 0.5001f * w.scales()[row]);
    }
  }
}

TEST(PackedMatrix, I8HoldsEveryBf16AsTheLargestOfItsRow) {
  for (std::uint16_t bits = 1; bits < 0x7f80; ++bits) {
    const bf16 row[] = {bits, static_cast<bf16>(bits | 0x8000)};
    std::uint8_t bytes[2];
    ASSERT_GT(plain::quantise(row, 2, bytes), 0);
    ASSERT_EQ(bytes[0], 128 + 127) << bits;
    ASSERT_EQ(bytes[1], 128 - 127) << bits;
  }
}

TEST(PackedMatrix, I8IsQuantisedToTheSameBytesInEveryVariant) {
  std::vector<std::vector<bf16>> rows = {{}, {0, 0x8000}, {1, 0x8001, 0}, {0x70, 3}};  // not normal
  for (const std::size_t size : {1, 37, 300}) {
    for (const float scale : {1.0f, 3e38f, 1e-36f, 1e-38f}) {
      rows.emplace_back();
      for (const float value : random_floats(size, static_cast<unsigned>(size), scale))
        rows.back().push_back(float_to_bf16(value));
    }
  }
  for (const std::vector<bf16>& row : rows) {
    float max = 0;
    for (const bf16 weight : row) max = std::max(max, std::abs(bf16_to_float(weight)));
    const float scale = max / 127;
    std::vector<std::uint8_t> expected, bytes(row.size());
    for (const bf16 weight : row) {
      const float q = scale == 0 ? 0 : std::nearbyint(bf16_to_float(weight) / scale);
      ASSERT_LE(std::abs(q), 127);
      expected.push_back(static_cast<std::uint8_t>(128 + q));
    }
    for (const auto& [variant, quantise] :
         {std::pair<Variant, QuantiseFn*>{Variant::kPlain, plain::quantise},
          {Variant::kAvx2, avx2::quantise},
          {Variant::kAvx512, avx512::quantise}}) {
      if (!variant_supported(variant)) continue;
      EXPECT_EQ(quantise(row.data(), row.size(), bytes.data()), scale);
      EXPECT_EQ(bytes, expected) << variant_name(variant) << ", max " << max;
    }
  }
}

// Every source type gives what its values as floats give, in one piece or several.
TEST(PackedMatrix, RowsOfEverySourceTypeAndInPieces) {
  constexpr int kN = 37;
  constexpr int kK = 21;
  std::vector<bf16> halves;
  std::vector<float> floats;
  for (float value : random_floats(kN * kK, 5)) {
    halves.push_back(float_to_bf16(value));
    floats.push_back(bf16_to_float(halves.back()));
  }
  std::vector<std::uint16_t> f16;
  std::vector<float> of_f16;
  for (int i = 0; i < kN * kK; ++i) {
    f16.push_back(static_cast<std::uint16_t>(0x3000 + i));
    of_f16.push_back(f16_to_float(f16.back()));
  }
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
    const PackedMatrix whole(dtype, kN, kK, floats);
    PackedMatrix pieces = PackedMatrix::unfilled(dtype, kN, kK);
    // Unaligned, as tensors in files may be.
    std::vector<std::byte> bytes(halves.size() * 2 + 1);
    std::memcpy(bytes.data() + 1, halves.data(), halves.size() * 2);
    pieces.pack_rows(DType::kBF16, bytes.data() + 1 + 32 * kK * 2, 32, 5);
    pieces.pack_rows(DType::kBF16, bytes.data() + 1, 0, 32);
    const PackedMatrix expected_f16(dtype, kN, kK, of_f16);
    PackedMatrix from_f16 = PackedMatrix::unfilled(dtype, kN, kK);
    from_f16.pack_rows(DType::kF16, reinterpret_cast<const std::byte*>(f16.data()), 0, kN);
    for (int row = 0; row < kN; ++row) {
      for (int k = 0; k < kK; ++k) {
        ASSERT_EQ(pieces.at(row, k), whole.at(row, k)) << dtype_name(dtype);
        ASSERT_EQ(from_f16.at(row, k), expected_f16.at(row, k)) << dtype_name(dtype);
      }
    }
  }
}

TEST(PackedMatrix, MovingKeepsTheWeightsInPlace) {
  PackedMatrix first(DType::kF32, 1, 2, std::vector<float>{3, 4});
  const std::byte* data = first.data();
  const PackedMatrix second = std::move(first);
  EXPECT_EQ(second.data(), data);
  EXPECT_EQ(second.at(0, 1), 4.0f);
}

TEST(PackStream, AMatrixWithoutMemoryIsAnErrorAndNothingIsRead) {
  bool read = false;
  const auto packed = pack_stream(DType::kBF16, 1 << 30, 1 << 30, DType::kBF16,
                                  [&](std::int64_t, std::span<std::byte>) -> Result<void> {
                                    read = true;
                                    return {};
                                  });
  ASSERT_FALSE(packed);
  EXPECT_EQ(packed.error().code, ErrorCode::kResourceExhausted);
  EXPECT_NE(packed.error().message.find("1073741824 x 1073741824"), std::string::npos);
  EXPECT_FALSE(read);
}

TEST(WeightMemory, BlocksDoNotOverlapAndComeBack) {
  std::mt19937 random(1);
  struct Block {
    std::byte* memory;
    std::size_t size;
    unsigned char mark;
  };
  std::vector<Block> blocks;
  const auto is_whole = [](const Block& block) {
    return std::all_of(block.memory, block.memory + block.size,
                       [&](std::byte b) { return b == std::byte{block.mark}; });
  };
  for (int i = 0; i < 2000; ++i) {
    if (blocks.size() < 40 && random() % 2 == 0) {
      const std::size_t size = 1 + random() % (i % 100 == 0 ? 80u << 20 : 300u << 10);
      Block block{allocate_weights(size), std::min<std::size_t>(size, 4096),
                  static_cast<unsigned char>(random())};
      ASSERT_EQ(reinterpret_cast<std::uintptr_t>(block.memory) % 64, 0u);
      std::memset(block.memory, block.mark, block.size);
      block.memory[size - 1] = std::byte{block.mark};
      blocks.push_back(block);
    } else if (!blocks.empty()) {
      const std::size_t at = random() % blocks.size();
      ASSERT_TRUE(is_whole(blocks[at]));
      free_weights(blocks[at].memory);
      blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(at));
    }
  }
  for (const Block& block : blocks) {
    EXPECT_TRUE(is_whole(block));
    free_weights(block.memory);
  }
  free_weights(nullptr);
}

}  // namespace
}  // namespace moiety::kernels
