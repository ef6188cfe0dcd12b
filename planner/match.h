#pragma once

#include <cstdint>
#include <vector>

namespace moiety::planner {

/// What it is worth to give a row its column; compared by `first`, then by `second`.
struct MatchValue {
  std::uint64_t first = 0;
  std::uint64_t second = 0;
};

/// Gives every row its own column so that the sum of values is largest (the Hungarian method,
/// O(rows^2 * columns)). values[row][column], at least as many columns as rows. Sums of `second`
/// must stay below 2^40.
std::vector<std::size_t> best_matching(const std::vector<std::vector<MatchValue>>& values);

}  // namespace moiety::planner
