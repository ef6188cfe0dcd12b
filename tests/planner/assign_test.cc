#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "planner/layer_flow.h"
#include "planner/match.h"

namespace moiety::planner {
namespace {

std::pair<std::uint64_t, std::uint64_t> worth(const std::vector<std::vector<MatchValue>>& values,
                                              const std::vector<std::size_t>& columns) {
  std::pair<std::uint64_t, std::uint64_t> sum;
  for (std::size_t row = 0; row < values.size(); ++row) {
    sum.first += values[row][columns[row]].first;
    sum.second += values[row][columns[row]].second;
  }
  return sum;
}

TEST(BestMatching, EqualsExhaustiveSearch) {
  std::mt19937 random(3);
  for (int i = 0; i < 200; ++i) {
    const std::size_t columns = 1 + random() % 6;
    const std::size_t rows = 1 + random() % columns;
    std::vector<std::vector<MatchValue>> values(rows);
    for (auto& row : values) {
      for (std::size_t column = 0; column < columns; ++column)
        row.push_back({random() % 5, random() % 5});
    }
    std::vector<std::size_t> order(columns);
    std::iota(order.begin(), order.end(), 0);
    std::pair<std::uint64_t, std::uint64_t> best;
    do {
      best = std::max(best, worth(values, order));
    } while (std::next_permutation(order.begin(), order.end()));

    auto found = best_matching(values);
    ASSERT_EQ(found.size(), rows);
    EXPECT_EQ(worth(values, found), best) << i;
    std::sort(found.begin(), found.end());
    EXPECT_EQ(std::adjacent_find(found.begin(), found.end()), found.end()) << "a column twice";
  }
}

TEST(BestMatching, HoldsHugeValues) {
  const std::uint64_t huge = std::uint64_t{1} << 63;
  EXPECT_EQ(best_matching({{{huge, 0}, {huge, 1}}, {{huge, 1}, {huge, 0}}}),
            (std::vector<std::size_t>{1, 0}));
  EXPECT_TRUE(best_matching({}).empty());
}

TEST(Distribute, SpreadsNewExpertsEvenly) {
  EXPECT_EQ(distribute({{0b1, 9, {0, 0}}}, {{0b1, 1, 8}, {0b11, 2, 16}}),
            (std::vector<std::vector<std::int32_t>>{{3, 6}}));
}

TEST(Distribute, LeavesExpertsWhereTheyLive) {
  EXPECT_EQ(distribute({{0b1, 6, {6, 0}}}, {{0b1, 1, 8}, {0b11, 1, 8}}),
            (std::vector<std::vector<std::int32_t>>{{6, 0}}));
}

TEST(Distribute, MakesRoomAtTheLowestPrice) {
  // B must go to pool 0, which is full of A; one A moves on, to pool 1.
  EXPECT_EQ(distribute({{0b01, 4, {4, 0}}, {0b10, 1, {0, 0}}}, {{0b11, 1, 4}, {0b01, 1, 4}}),
            (std::vector<std::vector<std::int32_t>>{{3, 1}, {1, 0}}));
  // A chain: C only fits pool 0, B fits 0 and 1, A fits 1 and 2.
  EXPECT_EQ(distribute({{0b010, 2, {2, 0, 0}}, {0b001, 2, {0, 2, 0}}, {0b100, 1, {0, 0, 0}}},
                       {{0b110, 1, 2}, {0b011, 1, 2}, {0b001, 1, 2}}),
            (std::vector<std::vector<std::int32_t>>{{1, 1, 0}, {0, 1, 1}, {1, 0, 0}}));
}

}  // namespace
}  // namespace moiety::planner
