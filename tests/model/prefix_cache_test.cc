#include "model/prefix_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "model/model.h"

namespace moiety {
namespace {

using Tokens = std::vector<std::int32_t>;

Tokens tokens(std::int32_t first) {
  Tokens all(16);
  std::iota(all.begin(), all.end(), first);
  return all;
}

BlockKey key(std::int32_t first) { return next_block_key(prefix_root(nullptr), tokens(first)); }

TEST(PrefixCacheKeys, DependOnTokensOrderPredecessorAndKeptExperts) {
  GateMask mask;
  mask.kept = {{1, 0, 1}, {}};
  const BlockKey all = prefix_root(nullptr);
  const BlockKey some = prefix_root(&mask);
  EXPECT_NE(all, some);
  EXPECT_EQ(some, prefix_root(&mask)) << "the contents count, not the object";
  GateMask other = mask;
  other.kept[0] = {1, 1, 0};
  EXPECT_NE(some, prefix_root(&other));
  other.kept = {{}, {1, 0, 1}};
  EXPECT_NE(some, prefix_root(&other)) << "the layer counts";

  Tokens swapped = tokens(5);
  std::swap(swapped[3], swapped[4]);
  std::set<BlockKey> keys = {next_block_key(all, tokens(5)), next_block_key(some, tokens(5)),
                             next_block_key(all, swapped), next_block_key(all, tokens(6)),
                             next_block_key(next_block_key(all, tokens(5)), tokens(5))};
  EXPECT_EQ(keys.size(), 5u);
  EXPECT_EQ(next_block_key(all, tokens(5)), next_block_key(all, tokens(5)));
}

TEST(PrefixCache, HandsOutEachBlockOnceAndTakesThemBack) {
  PrefixCache cache(5, true);
  std::set<std::int32_t> all;
  for (int i = 0; i < 5; ++i) all.insert(cache.take().value());
  EXPECT_EQ(all, (std::set<std::int32_t>{0, 1, 2, 3, 4}));
  EXPECT_FALSE(cache.take());
  EXPECT_EQ(cache.num_used(), 5);
  cache.release(Tokens{3, 1});
  EXPECT_EQ(cache.num_used(), 3);
  EXPECT_EQ(cache.num_cached(), 0) << "what was not published is not kept";
}

TEST(PrefixCache, APublishedBlockIsFoundWhileHeldAndAfterItsRelease) {
  PrefixCache cache(3, true);
  const std::int32_t block = cache.take().value();
  EXPECT_FALSE(cache.find(key(0)));
  EXPECT_EQ(cache.publish(block, key(0), 1.5), block);
  auto found = cache.find(key(0));
  ASSERT_TRUE(found);
  EXPECT_EQ(found->block, block);
  EXPECT_EQ(found->masked_mass, 1.5);
  cache.release(Tokens{block});
  EXPECT_EQ(cache.num_used(), 1) << "somebody still holds it";
  cache.release(Tokens{block});
  EXPECT_EQ(cache.num_used(), 0);
  EXPECT_EQ(cache.num_cached(), 1);
  EXPECT_EQ(cache.num_available(), 3);
  ASSERT_TRUE(cache.find(key(0)));
  EXPECT_EQ(cache.num_cached(), 0);
}

TEST(PrefixCache, EvictsTheLeastRecentlyUsedFirstAndNeverAHeldOne) {
  PrefixCache cache(4, true);
  for (std::int32_t i = 0; i < 4; ++i) cache.publish(cache.take().value(), key(i), 0);
  cache.release(Tokens{2, 0});  // 0 first: released last first
  cache.release(Tokens{1});
  // From the oldest: 0, 2, 1; block 3 is held. Using 0 makes it the newest.
  cache.release(Tokens{cache.find(key(0))->block});
  EXPECT_EQ(cache.take(), 2);
  EXPECT_EQ(cache.take(), 1);
  EXPECT_EQ(cache.num_evicted(), 2u);
  EXPECT_FALSE(cache.find(key(2)));
  EXPECT_FALSE(cache.find(key(1)));
  EXPECT_TRUE(cache.find(key(0)));
  EXPECT_FALSE(cache.take()) << "0 is held again, and so is 3";
  EXPECT_TRUE(cache.find(key(3)));
}

TEST(PrefixCache, BlocksOfASequenceAreEvictedFromItsEnd) {
  PrefixCache cache(3, true);
  Tokens blocks;
  for (std::int32_t i = 0; i < 3; ++i) {
    blocks.push_back(cache.take().value());
    cache.publish(blocks.back(), key(i), 0);
  }
  cache.release(blocks);
  EXPECT_EQ(cache.take(), blocks[2]);
  EXPECT_EQ(cache.take(), blocks[1]);
}

TEST(PrefixCache, TheSameContentsAreKeptOnce) {
  PrefixCache cache(2, true);
  const std::int32_t first = cache.take().value();
  const std::int32_t second = cache.take().value();
  cache.publish(first, key(0), 0);
  EXPECT_EQ(cache.publish(second, key(0), 0), first);
  EXPECT_EQ(cache.num_used(), 1);
  EXPECT_EQ(cache.take(), second) << "the copy is free";
}

TEST(PrefixCache, KeepsNothingWhenTurnedOff) {
  PrefixCache cache(2, false);
  const std::int32_t block = cache.take().value();
  EXPECT_EQ(cache.publish(block, key(0), 0), block);
  EXPECT_FALSE(cache.find(key(0)));
  cache.release(Tokens{block});
  EXPECT_EQ(cache.num_cached(), 0);
}

TEST(PrefixCacheDeathTest, WrongUseIsABug) {
  PrefixCache cache(2, true);
  EXPECT_DEATH(cache.release(Tokens{0}), "nobody holds");
  const std::int32_t block = cache.take().value();
  cache.publish(block, key(0), 0);
  EXPECT_DEATH(cache.publish(block, key(1), 0), "others can see");
}

/// Holders that take, publish, share and release at random, against a plain account of who holds
/// what.
TEST(PrefixCache, AccountsForEveryBlockUnderRandomUse) {
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    PrefixCache cache(12, true);
    struct Holder {
      Tokens blocks;
      std::vector<std::int32_t> names;  // of published leading blocks
    };
    std::vector<Holder> holders(4);
    std::map<std::int32_t, std::int32_t> contents;  // block -> name; what "was computed" there
    const auto chain = [](const std::vector<std::int32_t>& names) {
      BlockKey key = prefix_root(nullptr);
      for (std::int32_t name : names) key = next_block_key(key, tokens(name));
      return key;
    };
    for (int turn = 0; turn < 400; ++turn) {
      Holder& holder = holders[random() % holders.size()];
      if (random() % 6 == 0) {
        cache.release(holder.blocks);
        holder = {};
      } else {
        // The next block of one of two texts: found, or computed and published.
        std::vector<std::int32_t> names = holder.names;
        names.push_back(static_cast<std::int32_t>(
            names.empty() ? random() % 2 * 100 : static_cast<std::uint32_t>(names.back()) + 1));
        std::int32_t block = -1;
        if (const auto found = cache.find(chain(names)); found && random() % 4 != 0) {
          block = found->block;
          ASSERT_EQ(contents.at(block), names.back()) << "evicted contents were found";
        } else {
          if (found) cache.release(Tokens{found->block});
          const auto taken = cache.take();
          if (!taken) continue;
          for (const Holder& other : holders) {
            ASSERT_EQ(std::count(other.blocks.begin(), other.blocks.end(), *taken), 0)
                << "a held block was handed out";
          }
          contents[*taken] = names.back();
          block = cache.publish(*taken, chain(names), 0);
          ASSERT_EQ(contents.at(block), names.back());
        }
        holder.blocks.push_back(block);
        holder.names = names;
      }
      std::set<std::int32_t> held;
      for (const Holder& other : holders) held.insert(other.blocks.begin(), other.blocks.end());
      ASSERT_EQ(static_cast<std::size_t>(cache.num_used()), held.size());
      ASSERT_LE(cache.num_cached(), cache.num_available());
    }
    for (Holder& holder : holders) cache.release(holder.blocks);
    EXPECT_EQ(cache.num_used(), 0);
    for (std::int32_t i = 0; i < 12; ++i) EXPECT_TRUE(cache.take());
  }
}

}  // namespace
}  // namespace moiety
