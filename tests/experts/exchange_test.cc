#include "experts/exchange.h"

#include <gtest/gtest.h>

#include <random>

namespace moiety {
namespace {

Dispatch random_dispatch(std::uint64_t seed, DType dtype) {
  std::mt19937_64 random(seed);
  Dispatch dispatch;
  dispatch.combine = seed % 2 == 0 ? CombineMode::kPerWorker : CombineMode::kPerExpert;
  dispatch.dtype = dtype;
  dispatch.hidden_size = 1 + static_cast<std::int32_t>(random() % 33);
  const std::size_t rows = random() % 20;
  dispatch.pairs.row_offsets.push_back(0);
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t pair = random() % 4; pair > 0; --pair) {
      dispatch.pairs.experts.push_back(static_cast<std::int32_t>(random() % 64));
      dispatch.pairs.weights.push_back(static_cast<float>(random() % 1000) / 1000);
    }
    dispatch.pairs.row_offsets.push_back(static_cast<std::uint32_t>(dispatch.pairs.experts.size()));
  }
  for (std::size_t i = 0; i < rows * static_cast<std::size_t>(dispatch.hidden_size); ++i) {
    const float value = static_cast<float>(static_cast<double>(random()) * 0x1p-63 - 1);
    dispatch.rows.push_back(dtype == DType::kBF16 ? bf16_to_float(float_to_bf16(value)) : value);
  }
  return dispatch;
}

TEST(Exchange, ADispatchComesBackAsItWas) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    const Dispatch sent = random_dispatch(seed, seed % 3 == 0 ? DType::kF32 : DType::kBF16);
    const auto received = decode_dispatch(encode_dispatch(sent));
    ASSERT_TRUE(received) << received.error().message;
    EXPECT_EQ(received->combine, sent.combine);
    EXPECT_EQ(received->dtype, sent.dtype);
    EXPECT_EQ(received->hidden_size, sent.hidden_size);
    EXPECT_EQ(received->pairs.row_offsets, sent.pairs.row_offsets);
    EXPECT_EQ(received->pairs.experts, sent.pairs.experts);
    EXPECT_EQ(received->pairs.weights, sent.pairs.weights);
    EXPECT_EQ(received->rows, sent.rows);
  }
}

TEST(Exchange, HostileBytesGiveAnErrorOrAConsistentMessage) {
  std::mt19937_64 random(1);
  int refused = 0;
  for (std::uint64_t seed = 0; seed < 3000; ++seed) {
    std::vector<std::byte> payload = encode_dispatch(random_dispatch(seed, DType::kBF16));
    if (seed % 2 == 0) {
      payload.resize(random() % (payload.size() + 1));
    } else {
      payload[random() % std::min<std::size_t>(payload.size(), 40)] =
          static_cast<std::byte>(random());
    }
    const auto decoded = decode_dispatch(payload);
    if (!decoded) {
      EXPECT_EQ(decoded.error().code, ErrorCode::kDataLoss);
      ++refused;
      continue;
    }
    EXPECT_EQ(decoded->rows.size(),
              decoded->pairs.num_rows() * static_cast<std::size_t>(decoded->hidden_size));
    EXPECT_EQ(decoded->pairs.row_offsets.back(), decoded->pairs.num_pairs());
    EXPECT_TRUE(
        std::is_sorted(decoded->pairs.row_offsets.begin(), decoded->pairs.row_offsets.end()));
  }
  EXPECT_GT(refused, 1000);
}

TEST(Exchange, RowsOfTheWrongLengthAreRefused) {
  const std::vector<float> rows = {1, 2, 3};
  std::vector<float> three(3), four(4);
  EXPECT_TRUE(decode_rows(encode_rows(rows), three));
  EXPECT_EQ(three, rows);
  EXPECT_EQ(decode_rows(encode_rows(rows), four).error().code, ErrorCode::kDataLoss);
}

}  // namespace
}  // namespace moiety
