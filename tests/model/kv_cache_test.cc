#include "model/kv_cache.h"

#include <gtest/gtest.h>

#include <set>

namespace moiety {
namespace {

Architecture tiny() {
  Architecture arch;
  arch.num_heads = 4;
  arch.num_kv_heads = 2;
  arch.head_dim = 8;
  arch.layers.resize(3);
  return arch;
}

TEST(KvCache, HandsOutEachBlockOnceAndRefusesMore) {
  KvCache cache(tiny(), DType::kBF16, 10);
  EXPECT_EQ(KvCache::block_bytes(tiny(), DType::kBF16), 3u * 2 * 16 * 16 * 2);
  auto first = cache.allocate(4);
  auto second = cache.allocate(6);
  ASSERT_TRUE(first && second);
  std::set<std::int32_t> all(first->begin(), first->end());
  all.insert(second->begin(), second->end());
  EXPECT_EQ(all.size(), 10u);
  EXPECT_EQ(cache.allocate(1).error().code, ErrorCode::kResourceExhausted);
  cache.release(*first);
  EXPECT_EQ(cache.num_free(), 4);
  EXPECT_FALSE(cache.allocate(5));
  EXPECT_EQ(cache.num_free(), 4) << "a refused allocation takes nothing";
}

TEST(KvCache, CountsBlocksForTokens) {
  EXPECT_EQ(KvCache::blocks_for(0), 0);
  EXPECT_EQ(KvCache::blocks_for(1), 1);
  EXPECT_EQ(KvCache::blocks_for(16), 1);
  EXPECT_EQ(KvCache::blocks_for(17), 2);
}

TEST(KvCache, LayersAreZeroAlignedAndApart) {
  Architecture arch = tiny();
  arch.num_kv_heads = 1;
  arch.head_dim = 2;
  KvCache cache(arch, DType::kBF16, 3);  // 3 * 16 * 2 * 2 bytes each of k and v
  std::set<const std::byte*> places;
  for (std::int32_t layer = 0; layer < 3; ++layer) {
    const kernels::KvLayer l = cache.layer(layer);
    for (std::byte* tensor : {l.k, l.v}) {
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor) % 64, 0u);
      for (int i = 0; i < 192; ++i) {
        EXPECT_EQ(tensor[i], std::byte{0}) << "another tensor lies here";
        tensor[i] = std::byte{1};
      }
      places.insert(tensor);
    }
  }
  EXPECT_EQ(places.size(), 6u);
}

}  // namespace
}  // namespace moiety
