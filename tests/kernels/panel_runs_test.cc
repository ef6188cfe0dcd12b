#include "kernels/panel_runs.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace moiety::kernels {
namespace {

/// The runs that matrices of so many panels of one size are cut into, one matrix after the other.
std::vector<std::int32_t> cut(const std::vector<std::int32_t>& matrices,
                              std::size_t panel_bytes,
                              std::size_t threads,
                              std::size_t most_bytes) {
  const auto panels =
      static_cast<std::size_t>(std::accumulate(matrices.begin(), matrices.end(), 0));
  PanelRuns runs(panels * panel_bytes, threads);
  std::vector<std::int32_t> counts;
  for (std::int32_t left : matrices) {
    while (left > 0) {
      counts.push_back(runs.take(left, panel_bytes, most_bytes));
      EXPECT_GE(counts.back(), 1);
      EXPECT_LE(counts.back(), left);
      left -= counts.back();
    }
  }
  return counts;
}

TEST(PanelRuns, LongOnesComeFirstAndShortOnesLast) {
  constexpr std::size_t kPanelBytes = 32 << 10;
  const auto counts = cut({1024}, kPanelBytes, 2, PanelRuns::kAnyBytes);  // 32 MiB
  EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), 0), 1024);
  EXPECT_EQ(counts.front(), 256);  // half of a thread's share
  for (std::size_t i = 1; i < counts.size(); ++i) EXPECT_LE(counts[i], counts[i - 1]);
  EXPECT_EQ(counts[counts.size() - 2] * kPanelBytes, 64u << 10);  // then what is left
  EXPECT_LT(counts.size(), 32u);
}

TEST(PanelRuns, SmallMatricesAreSharedByAllThreads) {
  for (const std::size_t threads : {2, 3, 16}) {
    const auto counts = cut({64}, 1 << 10, threads, PanelRuns::kAnyBytes);
    EXPECT_GE(counts.size(), 2 * threads);
    EXPECT_LE(static_cast<std::size_t>(counts.front()), 64 / (2 * threads));
  }
}

TEST(PanelRuns, ARunEndsWithItsMatrix) {
  const auto counts = cut({16, 16, 16, 16}, 64 << 10, 2, PanelRuns::kAnyBytes);
  EXPECT_EQ(counts[0], 16);  // its share would be more
  EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), 0), 64);
}

TEST(PanelRuns, NoRunIsLargerThanAllowedUnlessOnePanelIs) {
  for (const std::int32_t count : cut({100, 3}, 10 << 10, 2, 50 << 10)) EXPECT_LE(count, 5);
  for (const std::int32_t count : cut({100}, 60 << 10, 2, 50 << 10)) EXPECT_EQ(count, 1);
}

TEST(PanelRuns, RunsAreWholeGroupsOfPanels) {
  const auto counts = cut({1000}, 32 << 10, 3, PanelRuns::kAnyBytes);
  for (std::size_t i = 0; i + 1 < counts.size(); ++i) {
    if (counts[i] > 4) {
      EXPECT_EQ(counts[i] % 4, 0) << counts[i];
    }
  }
}

}  // namespace
}  // namespace moiety::kernels
