#include "kernels/linear.h"

#include <algorithm>

#include "common/check.h"
#include "kernels/implementations.h"

namespace moiety::kernels {
namespace {

// Rows that share one pass over the weights. Their inputs stay in the L2 cache, and a panel that
// was read for the first block of rows is still there for the last.
constexpr std::int32_t kRowChunk = 48;
// Panels that one row works on at a time, so that the additions of several outputs overlap.
constexpr std::int32_t kPanelGroup = 4;
// Below this many multiplications waking another thread costs more than it saves.
constexpr std::int64_t kSerialProducts = 1 << 17;
constexpr std::int64_t kTasksPerThread = 8;

static_assert(kPanelColumns == PackedMatrix::kPanel);

LinearFn* linear_kernel(Variant variant) {
  switch (variant) {
    case Variant::kReference:
      return reference::linear_tile;
    case Variant::kPlain:
      return plain::linear_tile;
    case Variant::kAvx2:
      return avx2::linear_tile;
  }
  check_failed("unknown variant", __FILE__, __LINE__);
}

/// Narrows a tile of all rows to [row_begin, row_end) and [panel_begin, panel_end).
LinearTile part_of(LinearTile tile,
                   std::int32_t row_begin,
                   std::int32_t row_end,
                   std::int32_t panel_begin,
                   std::int32_t panel_end) {
  tile.x += static_cast<std::ptrdiff_t>(row_begin) * tile.k;
  tile.y += static_cast<std::ptrdiff_t>(row_begin) * tile.n;
  tile.rows = row_end - row_begin;
  tile.panel_begin = panel_begin;
  tile.panel_end = panel_end;
  return tile;
}

}  // namespace

static LinearTile whole_matrix(const PackedMatrix& w, const float* x, std::int32_t m, float* y) {
  MOIETY_CHECK(m >= 0, "rows");
  const bool is_f32 = w.dtype() == DType::kF32;
  const std::byte* weights = is_f32 ? reinterpret_cast<const std::byte*>(w.panel_f32(0))
                                    : reinterpret_cast<const std::byte*>(w.panel_bf16(0));
  const std::int32_t panels = w.num_panels();
  return {.is_bf16 = !is_f32,
          .weights = weights,
          .panel_bytes = panels == 0 ? 0 : static_cast<std::ptrdiff_t>(w.num_bytes()) / panels,
          .n = w.n(),
          .k = w.k(),
          .panel_begin = 0,
          .panel_end = panels,
          .rows = m,
          .x = x,
          .y = y};
}

void linear_serial(
    Variant variant, const PackedMatrix& w, const float* x, std::int32_t m, float* y) {
  LinearFn* kernel = linear_kernel(variant);
  const LinearTile all = whole_matrix(w, x, m, y);
  for (std::int32_t row = 0; row < m; row += kRowChunk) {
    kernel(part_of(all, row, std::min(m, row + kRowChunk), 0, all.panel_end));
  }
}

void linear(Variant variant,
            const PackedMatrix& w,
            const float* x,
            std::int32_t m,
            float* y,
            ThreadPool& pool) {
  const auto threads = static_cast<std::int64_t>(pool.num_threads());
  const std::int64_t products = std::int64_t{m} * w.n() * w.k();
  if (threads == 1 || products < kSerialProducts) return linear_serial(variant, w, x, m, y);

  LinearFn* kernel = linear_kernel(variant);
  const LinearTile all = whole_matrix(w, x, m, y);
  const std::int64_t row_chunks = (m + kRowChunk - 1) / kRowChunk;
  const std::int64_t wanted = w.num_panels() * row_chunks / (threads * kTasksPerThread);
  const auto group =
      static_cast<std::int32_t>(std::max<std::int64_t>(1, wanted / kPanelGroup) * kPanelGroup);
  const std::int64_t groups = (w.num_panels() + group - 1) / group;
  pool.parallel_for(static_cast<std::size_t>(row_chunks * groups), [&](std::size_t task,
                                                                       std::size_t) {
    const auto row =
        static_cast<std::int32_t>(static_cast<std::int64_t>(task) / groups) * kRowChunk;
    const auto panel = static_cast<std::int32_t>(static_cast<std::int64_t>(task) % groups) * group;
    kernel(part_of(all, row, std::min(m, row + kRowChunk), panel,
                   std::min(w.num_panels(), panel + group)));
  });
}

}  // namespace moiety::kernels
