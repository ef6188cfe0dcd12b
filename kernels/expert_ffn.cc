#include "kernels/expert_ffn.h"

#include <sched.h>

#include <algorithm>
#include <atomic>

#include "common/check.h"
#include "kernels/elementwise.h"
#include "kernels/implementations.h"
#include "kernels/linear.h"

namespace moiety::kernels {
namespace {

// Weights of one task: small enough to share out evenly and to stay in the L2 cache while rows pass
// by, large enough that handing it out costs nothing.
constexpr std::size_t kTaskBytes = 128 << 10;
constexpr std::int32_t kPanelGroup = 4;
// Rows of one task: their inputs stay in the cache beside the weights.
constexpr std::int32_t kRowChunk = 96;

SiluMulFn* silu_mul_kernel(Variant variant) {
  switch (variant) {
    case Variant::kReference:
      return reference::silu_mul;
    case Variant::kPlain:
      return plain::silu_mul;
    case Variant::kAvx2:
      return avx2::silu_mul;
    case Variant::kAvx512:
    case Variant::kAvx512Bf16:
    case Variant::kAmx:
      return avx512::silu_mul;
  }
  check_failed("unknown variant", __FILE__, __LINE__);
}

void check_shape(const ExpertWeights& weights, std::int32_t hidden) {
  const auto& [gate, up, down] = weights;
  MOIETY_CHECK(gate.k() == hidden, "rows do not fit the expert");
  MOIETY_CHECK(up.n() == gate.n() && up.k() == gate.k(), "gate and up differ in shape");
  MOIETY_CHECK(down.n() == gate.k() && down.k() == gate.n(), "down does not fit gate");
}

/// Calls body(first panel, end) for ranges of panels whose weights, `bytes` each, fill a task.
template <class Body>
void for_panel_ranges(std::int32_t panels, std::size_t bytes, const Body& body) {
  const auto fit = static_cast<std::int32_t>(kTaskBytes / std::max<std::size_t>(1, bytes));
  const std::int32_t step = fit < kPanelGroup ? std::max(1, fit) : fit / kPanelGroup * kPanelGroup;
  for (std::int32_t begin = 0; begin < panels; begin += step) {
    body(begin, std::min(panels, begin + step));
  }
}

/// Waits until `left` is zero; another thread is at its last pieces then.
void wait_for(const std::atomic<std::int32_t>& left) {
  for (int spin = 0; left.load(std::memory_order_acquire) != 0; ++spin) {
    if (spin > 1000) ::sched_yield();
  }
}

}  // namespace

void GroupedExperts::run(const InputRows& x,
                         std::span<const ExpertRows> experts,
                         float* y,
                         ThreadPool& pool) {
  const std::int32_t hidden = x.k();
  std::int32_t widest = 0;
  first_half_.clear();
  second_half_.clear();
  std::vector<std::atomic<std::int32_t>> left(experts.size());
  for (std::size_t i = 0; i < experts.size(); ++i) {
    const ExpertRows& rows = experts[i];
    MOIETY_CHECK(rows.first >= 0 && rows.count >= 0 && rows.first + rows.count <= x.m(),
                 "rows that are not there");
    check_shape(*rows.weights, hidden);
    widest = std::max(widest, rows.weights->gate.n());
    const auto cut = [&](std::vector<Task>& tasks, const PackedMatrix& matrix, std::size_t bytes) {
      const std::size_t before = tasks.size();
      for_panel_ranges(matrix.num_panels(), bytes, [&](std::int32_t begin, std::int32_t end) {
        for (std::int32_t row = 0; row < rows.count; row += kRowChunk) {
          tasks.push_back({static_cast<std::int32_t>(i), rows.first + row,
                           std::min(kRowChunk, rows.count - row), begin, end});
        }
      });
      return static_cast<std::int32_t>(tasks.size() - before);
    };
    left[i] = cut(first_half_, rows.weights->gate, 2 * rows.weights->gate.panel_bytes());
    cut(second_half_, rows.weights->down, rows.weights->down.panel_bytes());
  }
  // One width for all keeps the rows apart by the same stride; experts of one layer have one width.
  for (const ExpertRows& rows : experts) {
    MOIETY_CHECK(rows.weights->gate.n() == widest, "experts of one batch differ in width");
  }
  if (first_half_.empty()) return;
  hidden_.reset(x.variant(), x.weights(), x.m(), widest);
  scratch_.resize(pool.num_threads());
  SiluMulFn* silu_mul = silu_mul_kernel(x.variant());

  const auto gate_and_up = [&](const Task& task, std::vector<float>& scratch) {
    const ExpertWeights& weights = *experts[static_cast<std::size_t>(task.expert)].weights;
    const std::int32_t columns = std::min(weights.gate.n(), task.panel_end * kPanelColumns) -
                                 task.panel_begin * kPanelColumns;
    const std::size_t size = static_cast<std::size_t>(task.num_rows) * columns;
    if (scratch.size() < 2 * size) scratch.resize(2 * size);
    LinearPart part{task.first_row, task.num_rows,  task.panel_begin,
                    task.panel_end, scratch.data(), columns};
    linear_part(weights.gate, x, part);
    part.y += size;
    linear_part(weights.up, x, part);
    silu_mul(scratch.data(), scratch.data() + size, size);
    for (std::int32_t row = 0; row < task.num_rows; ++row) {
      hidden_.set(task.first_row + row, task.panel_begin * kPanelColumns, columns,
                  scratch.data() + static_cast<std::ptrdiff_t>(row) * columns);
    }
    left[static_cast<std::size_t>(task.expert)].fetch_sub(1, std::memory_order_release);
  };
  const auto down = [&](const Task& task) {
    wait_for(left[static_cast<std::size_t>(task.expert)]);
    const PackedMatrix& weights = experts[static_cast<std::size_t>(task.expert)].weights->down;
    float* first =
        y + static_cast<std::ptrdiff_t>(task.first_row) * hidden + task.panel_begin * kPanelColumns;
    linear_part(weights, hidden_,
                {task.first_row, task.num_rows, task.panel_begin, task.panel_end, first, hidden});
  };
  pool.parallel_for(first_half_.size() + second_half_.size(),
                    [&](std::size_t index, std::size_t thread) {
                      if (index < first_half_.size()) {
                        gate_and_up(first_half_[index], scratch_[thread]);
                      } else {
                        down(second_half_[index - first_half_.size()]);
                      }
                    });
}

}  // namespace moiety::kernels
