#pragma once

#include <cstdint>
#include <utility>

#include "kernels/implementations.h"

/// For files that are compiled for one instruction set. Instantiate with types of an unnamed
/// namespace only, so that no copy is shared between such files.
namespace moiety::kernels {

/// Walks a tile in blocks of at most kMaxRows rows x kMaxPanels panels (1, 2 or 4; of so many rows
/// at most Kernel::max_panels(rows)), which is what has room in registers:
/// Kernel::compute<rows, panels>(tile, panel, row).
template <class Kernel, int kMaxRows, int kMaxPanels>
class RowBlocks {
 public:
  static void all(const LinearTile& tile) {
    all(tile, std::make_integer_sequence<int, kMaxRows>{});
  }

 private:
  using Rows = void(const LinearTile&, std::int32_t, std::int32_t, std::int32_t);

  template <int kRows>
  static void rows(const LinearTile& tile, std::int32_t panel, std::int32_t end, std::int32_t row) {
    constexpr int kPanels =
        Kernel::max_panels(kRows) < kMaxPanels ? Kernel::max_panels(kRows) : kMaxPanels;
    if constexpr (kPanels >= 4) {
      for (; panel + 4 <= end; panel += 4) Kernel::template compute<kRows, 4>(tile, panel, row);
    }
    if constexpr (kPanels >= 2) {
      for (; panel + 2 <= end; panel += 2) Kernel::template compute<kRows, 2>(tile, panel, row);
    }
    for (; panel < end; ++panel) Kernel::template compute<kRows, 1>(tile, panel, row);
  }

  template <int... kRows>
  static void all(const LinearTile& tile, std::integer_sequence<int, kRows...>) {
    static constexpr Rows* kFunctions[] = {nullptr, rows<kRows + 1>...};
    // Equal blocks: 7 rows go as 4 + 3, since 1 alone would waste a pass.
    const std::int32_t blocks = (tile.rows + kMaxRows - 1) / kMaxRows;
    for (std::int32_t panel = tile.panel_begin; panel < tile.panel_end; panel += kMaxPanels) {
      const std::int32_t left = tile.panel_end - panel;
      const std::int32_t end = panel + (left < kMaxPanels ? left : kMaxPanels);
      std::int32_t row = 0;
      for (std::int32_t block = 0; block < blocks; ++block) {
        const std::int32_t count = (tile.rows - row + blocks - block - 1) / (blocks - block);
        kFunctions[count](tile, panel, end, row);
        row += count;
      }
    }
  }
};

}  // namespace moiety::kernels
