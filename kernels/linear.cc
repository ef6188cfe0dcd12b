#include "kernels/linear.h"

#include <algorithm>
#include <vector>

#include "common/check.h"
#include "kernels/implementations.h"
#include "kernels/panel_runs.h"

namespace moiety::kernels {
namespace {

// Rows that share one pass over a task's weights: their inputs stay in the L2 cache beside them.
constexpr std::int32_t kRowChunk = 192;
// Weights that several chunks of rows pass by: small enough to stay in the L2 cache meanwhile.
constexpr std::size_t kSharedBytes = 192 << 10;
// Below this many multiplications waking another thread costs more than it saves.
constexpr std::int64_t kSerialProducts = 1 << 17;

static_assert(kPanelColumns == PackedMatrix::kPanel);

LinearFn* linear_kernel(Variant variant, DType weights) {
  switch (variant) {
    case Variant::kReference:
      return reference::linear_tile;
    case Variant::kPlain:
      return plain::linear_tile;
    case Variant::kAvx2:
      return avx2::linear_tile;
    case Variant::kAvx512:
      return avx512::linear_tile;
    case Variant::kAvx512Bf16:
      return weights == DType::kF32 ? avx512::linear_tile : avx512_bf16::linear_tile;
    case Variant::kAmx:
      return weights == DType::kF32 ? avx512::linear_tile : amx::linear_tile;
  }
  check_failed("unknown variant", __FILE__, __LINE__);
}

WeightType weight_type(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return WeightType::kBF16;
    case DType::kI8:
      return WeightType::kI8;
    default:
      return WeightType::kF32;
  }
}

InputRows to_rows(Variant variant, const PackedMatrix& w, const float* x, std::int32_t m) {
  InputRows rows;
  rows.reset(variant, w.dtype(), m, w.k());
  for (std::int32_t row = 0; row < m; ++row) {
    rows.set_row(row, x + static_cast<std::ptrdiff_t>(row) * w.k());
  }
  return rows;
}

}  // namespace

void linear_part(const PackedMatrix& w, const InputRows& x, const LinearPart& part) {
  MOIETY_CHECK(x.k() == w.k() && x.weights() == w.dtype(),
               "inputs that were not made for these weights");
  MOIETY_CHECK(part.first_row >= 0 && part.num_rows >= 0 && part.first_row + part.num_rows <= x.m(),
               "rows that are not there");
  if (part.num_rows == 0 || part.panel_begin >= part.panel_end) return;
  linear_kernel(x.variant(),
                w.dtype())({.type = weight_type(w.dtype()),
                            .weights = w.data(),
                            .panel_bytes = static_cast<std::ptrdiff_t>(w.panel_bytes()),
                            .scales = w.scales(),
                            .n = w.n(),
                            .k = w.k(),
                            .panel_begin = part.panel_begin,
                            .panel_end = part.panel_end,
                            .rows = part.num_rows,
                            .x = x.row(part.first_row),
                            .x_stride = x.stride(),
                            .x_scales = x.scales(part.first_row),
                            .x_offsets = x.offsets(part.first_row),
                            .y = part.y,
                            .y_stride = part.y_stride,
                            .next = part.next});
}

void linear(const InputRows& x, std::span<const LinearJob> jobs, ThreadPool& pool) {
  struct Task {
    const LinearJob* job;
    std::int32_t row;
    std::int32_t panel_begin, panel_end;
  };
  const auto part_of = [&](const Task& task, const std::byte* next) {
    const PackedMatrix& w = *task.job->w;
    const std::ptrdiff_t stride = w.n();
    linear_part(
        w, x,
        {.first_row = task.row,
         .num_rows = std::min(kRowChunk, x.m() - task.row),
         .panel_begin = task.panel_begin,
         .panel_end = task.panel_end,
         .y = task.job->y + task.row * stride + std::ptrdiff_t{task.panel_begin} * kPanelColumns,
         .y_stride = stride,
         .next = next});
  };
  std::int64_t products = 0;
  std::size_t bytes = 0;
  for (const LinearJob& job : jobs) {
    products += std::int64_t{x.m()} * job.w->n() * job.w->k();
    bytes += job.w->num_bytes();
  }
  if (pool.num_threads() == 1 || products < kSerialProducts) {
    for (const LinearJob& job : jobs) {
      for (std::int32_t row = 0; row < x.m(); row += kRowChunk) {
        part_of({&job, row, 0, job.w->num_panels()}, nullptr);
      }
    }
    return;
  }
  // Tasks of one run of panels follow each other, so that its weights are read from memory once.
  std::vector<Task> tasks;
  PanelRuns runs(bytes, pool.num_threads());
  const std::size_t most_bytes = x.m() <= kRowChunk ? PanelRuns::kAnyBytes : kSharedBytes;
  for (const LinearJob& job : jobs) {
    const std::int32_t panels = job.w->num_panels();
    for (std::int32_t begin = 0, end = 0; begin < panels; begin = end) {
      end = begin + runs.take(panels - begin, job.w->panel_bytes(), most_bytes);
      for (std::int32_t row = 0; row < x.m(); row += kRowChunk) {
        tasks.push_back({&job, row, begin, end});
      }
    }
  }
  pool.parallel_for(tasks.size(), [&](std::size_t index, std::size_t) {
    // Tasks are handed out in order: a thread's next one is probably as far on as there are
    // threads. Nothing where it is of another matrix: its panels may have another size.
    const std::size_t next = index + pool.num_threads();
    const Task& task = tasks[index];
    part_of(task, next < tasks.size() && tasks[next].job == task.job
                      ? task.job->w->panel(tasks[next].panel_begin)
                      : nullptr);
  });
}

void linear(Variant variant,
            const PackedMatrix& w,
            const float* x,
            std::int32_t m,
            float* y,
            ThreadPool& pool) {
  const InputRows rows = to_rows(variant, w, x, m);
  const LinearJob job{&w, y};
  linear(rows, {&job, 1}, pool);
}

void linear_serial(
    Variant variant, const PackedMatrix& w, const float* x, std::int32_t m, float* y) {
  const InputRows rows = to_rows(variant, w, x, m);
  for (std::int32_t row = 0; row < m; row += kRowChunk) {
    linear_part(w, rows,
                {.first_row = row,
                 .num_rows = std::min(kRowChunk, m - row),
                 .panel_begin = 0,
                 .panel_end = w.num_panels(),
                 .y = y + static_cast<std::ptrdiff_t>(row) * w.n(),
                 .y_stride = w.n()});
  }
}

}  // namespace moiety::kernels
