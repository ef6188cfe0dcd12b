#include "planner/match.h"

#include "common/check.h"

namespace moiety::planner {

namespace {

/// Wide enough for sums of both parts of a MatchValue in one number.
__extension__ using Wide = __int128;

constexpr Wide kInfinity = Wide{1} << 120;

Wide cost_of(const MatchValue& value) {
  return -((Wide{value.first} << 40) + static_cast<Wide>(value.second));
}

}  // namespace

// Shortest augmenting paths with potentials; row and column 0 are sentinels.
std::vector<std::size_t> best_matching(const std::vector<std::vector<MatchValue>>& values) {
  const std::size_t rows = values.size();
  if (rows == 0) return {};
  const std::size_t columns = values.front().size();
  MOIETY_CHECK(rows <= columns, "more rows than columns to match");

  std::vector<Wide> row_potential(rows + 1, 0);
  std::vector<Wide> column_potential(columns + 1, 0);
  std::vector<std::size_t> row_of(columns + 1, 0);
  std::vector<std::size_t> previous(columns + 1, 0);
  for (std::size_t row = 1; row <= rows; ++row) {
    row_of[0] = row;
    std::size_t column = 0;
    std::vector<Wide> distance(columns + 1, kInfinity);
    std::vector<bool> visited(columns + 1, false);
    do {
      visited[column] = true;
      const std::size_t at_row = row_of[column];
      Wide least = kInfinity;
      std::size_t nearest = 0;
      for (std::size_t next = 1; next <= columns; ++next) {
        if (visited[next]) continue;
        const Wide reduced =
            cost_of(values[at_row - 1][next - 1]) - row_potential[at_row] - column_potential[next];
        if (reduced < distance[next]) {
          distance[next] = reduced;
          previous[next] = column;
        }
        if (distance[next] < least) {
          least = distance[next];
          nearest = next;
        }
      }
      for (std::size_t i = 0; i <= columns; ++i) {
        if (visited[i]) {
          row_potential[row_of[i]] += least;
          column_potential[i] -= least;
        } else {
          distance[i] -= least;
        }
      }
      column = nearest;
    } while (row_of[column] != 0);
    while (column != 0) {
      row_of[column] = row_of[previous[column]];
      column = previous[column];
    }
  }

  std::vector<std::size_t> column_of(rows);
  for (std::size_t column = 1; column <= columns; ++column) {
    if (row_of[column] != 0) column_of[row_of[column] - 1] = column - 1;
  }
  return column_of;
}

}  // namespace moiety::planner
