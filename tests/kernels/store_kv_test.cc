#include <cstring>
#include <random>

#include "kernels/implementations.h"
#include "kernels/kv_layout.h"
#include "tests/kernels/kv_sequence.h"

namespace moiety::kernels {
namespace {

/// Floats that are hard to round: NaNs of either kind, infinities, denormals, ties, overflow.
std::vector<float> hard_floats(std::size_t size) {
  const std::uint32_t hard[] = {0x7fc00000, 0x7f800001, 0xffbfffff, 0x7f800000, 0xff800000,
                                0x00000001, 0x80000001, 0x007fffff, 0x3f808000, 0x3f818000,
                                0x3f807fff, 0x3f808001, 0x7f7fffff, 0xff7f8000, 0x80000000};
  std::vector<float> values = random_floats(size, 5, 100);
  for (std::size_t i = 0; i < size; i += 3) {
    values[i] = std::bit_cast<float>(hard[i / 3 % std::size(hard)]);
  }
  return values;
}

std::uint32_t stored_bits(const KvLayer& layer, const std::byte* pool, std::ptrdiff_t index) {
  if (layer.dtype == DType::kBF16) {
    std::uint16_t bits;
    std::memcpy(&bits, pool + index * 2, 2);
    return bits;
  }
  std::uint32_t bits;
  std::memcpy(&bits, pool + index * 4, 4);
  return bits;
}

std::uint32_t expected_bits(DType dtype, float value) {
  return dtype == DType::kBF16 ? float_to_bf16(value) : std::bit_cast<std::uint32_t>(value);
}

TEST(StoreKv, TwiceIsOnceAndTouchesItsTokenOnly) {
  const AttentionShape shape{DType::kBF16, 2, 2, 5};
  KvSequence sequence(shape, 19);
  const std::size_t bytes = sequence.pool_bytes();
  const KvLayer layer = sequence.layer();
  const std::vector<std::byte> k_before(layer.k, layer.k + bytes);
  const std::vector<std::byte> v_before(layer.v, layer.v + bytes);
  sequence.store(17);
  EXPECT_EQ(std::memcmp(k_before.data(), layer.k, bytes), 0);
  EXPECT_EQ(std::memcmp(v_before.data(), layer.v, bytes), 0);
  for (std::int32_t position : {16, 17}) {
    std::ranges::fill(sequence.k, 2.0f);
    std::ranges::fill(sequence.v, 3.0f);
    sequence.store(position);
  }
  std::size_t k_changed = 0;
  std::size_t v_changed = 0;
  for (std::size_t i = 0; i + 1 < bytes; i += 2) {
    if (std::memcmp(&k_before[i], layer.k + i, 2) != 0) ++k_changed;
    if (std::memcmp(&v_before[i], layer.v + i, 2) != 0) ++v_changed;
  }
  EXPECT_EQ(k_changed, 20u);
  EXPECT_EQ(v_changed, 20u);
}

TEST(StoreKv, ManyTokensLieWhereTheLayoutSaysRounded) {
  const unsigned seed = std::random_device{}();
  std::mt19937 engine(seed);
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    for (std::int32_t head_dim : {1, 2, 5, 16, 64, 67, 130}) {
      constexpr std::int32_t kHeads = 3;
      constexpr std::int32_t kBlocks = 6;
      const std::ptrdiff_t token = kHeads * head_dim;
      const std::ptrdiff_t head_size = std::ptrdiff_t{kKvBlockSize} * head_dim;
      std::vector<std::byte> k(static_cast<std::size_t>(kBlocks * kHeads * head_size) *
                               dtype_bytes(dtype));
      std::vector<std::byte> v(k.size());
      const KvLayer layer{dtype, k.data(), v.data(), kHeads, head_dim};
      const std::vector<std::int32_t> tables[] = {{4, 0, 2}, {5, 1, 3}};
      // Runs of both sequences that begin and end anywhere.
      std::vector<AttentionRow> rows;
      for (const auto& table : tables) {
        const auto first = static_cast<std::int32_t>(engine() % 20);
        const auto end = first + 1 + static_cast<std::int32_t>(engine() % 28);
        for (std::int32_t t = first; t < end; ++t) rows.push_back({table, t});
      }
      const std::size_t size = rows.size() * static_cast<std::size_t>(token);
      const std::vector<float> new_k = hard_floats(size);
      const std::vector<float> new_v(new_k.rbegin(), new_k.rend());
      ThreadPool pool(3);
      store_kv(layer, rows, new_k.data(), new_v.data(), pool);

      std::size_t wrong = 0;
      std::vector<bool> is_stored(k.size() / dtype_bytes(dtype));
      for (std::size_t row = 0; row < rows.size(); ++row) {
        for (std::int32_t i = 0; i < kHeads * head_dim; ++i) {
          const std::int32_t position = rows[row].position;
          const std::int32_t block = rows[row].block_table[position / kKvBlockSize];
          const std::ptrdiff_t base = (std::ptrdiff_t{block} * kHeads + i / head_dim) * head_size;
          const bool is_bf16 = dtype == DType::kBF16;
          const std::int32_t slot = position % kKvBlockSize;
          const std::ptrdiff_t at_k = base + key_index(is_bf16, head_dim, slot, i % head_dim);
          const std::ptrdiff_t at_v = base + value_index(is_bf16, head_dim, slot, i % head_dim);
          const std::size_t from = row * static_cast<std::size_t>(token) + i;
          wrong += stored_bits(layer, layer.k, at_k) != expected_bits(dtype, new_k[from]);
          wrong += stored_bits(layer, layer.v, at_v) != expected_bits(dtype, new_v[from]);
          is_stored[static_cast<std::size_t>(at_v)] = true;
        }
      }
      EXPECT_EQ(wrong, 0u) << "seed " << seed << " " << dtype_name(dtype) << " " << head_dim;
      for (std::size_t i = 0; i < is_stored.size(); ++i) {
        if (is_stored[i]) continue;
        ASSERT_EQ(stored_bits(layer, layer.v, static_cast<std::ptrdiff_t>(i)), 0u)
            << "seed " << seed << ": a token beside was touched";
      }
    }
  }
}

TEST(StoreKv, EveryInstructionSetStoresTheSameBytes) {
  for (bool is_bf16 : {false, true}) {
    for (std::int32_t head_dim : {1, 6, 64, 77, 129}) {
      for (std::int32_t token : {0, 3, 8}) {
        for (std::int32_t count : {1, 2, 8}) {
          const std::size_t size = static_cast<std::size_t>(count * head_dim);
          const std::vector<float> k = hard_floats(size);
          const std::vector<float> v(k.rbegin(), k.rend());
          const auto store = [&](StoreFn* kernel) {
            std::vector<std::byte> stored(2 * 64 * static_cast<std::size_t>(head_dim),
                                          std::byte{0x5a});
            kernel({.is_bf16 = is_bf16,
                    .k = stored.data(),
                    .v = stored.data() + stored.size() / 2,
                    .head_dim = head_dim,
                    .token = token,
                    .count = count,
                    .new_k = k.data(),
                    .new_v = v.data(),
                    .stride = head_dim});
            return stored;
          };
          const std::vector<std::byte> expected = store(plain::store_kv);
          if (variant_supported(Variant::kAvx2)) {
            EXPECT_EQ(store(avx2::store_kv), expected);
          }
          if (variant_supported(Variant::kAvx512)) {
            EXPECT_EQ(store(avx512::store_kv), expected);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace moiety::kernels
