#include "kernels/expert_ffn.h"

#include <sched.h>

#include <algorithm>
#include <atomic>

#include "common/check.h"
#include "kernels/elementwise.h"
#include "kernels/implementations.h"
#include "kernels/linear.h"
#include "kernels/panel_runs.h"

namespace moiety::kernels {
namespace {

// Weights that more rows than kFewRows pass by in blocks: small enough to stay in the L2 cache.
constexpr std::size_t kSharedBytes = 512 << 10;
constexpr std::int32_t kFewRows = 16;
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
                         std::ptrdiff_t y_stride,
                         ThreadPool& pool) {
  const std::int32_t hidden = x.k();
  std::int32_t widest = 0;
  std::size_t bytes = 0;
  for (const ExpertRows& rows : experts) {
    if (rows.count != 0) bytes += rows.weights->num_bytes();
  }
  PanelRuns runs(bytes, pool.num_threads());
  first_half_.clear();
  second_half_.clear();
  std::vector<std::int32_t> first_chunk(experts.size() + 1);
  for (std::size_t i = 0; i < experts.size(); ++i) {
    first_chunk[i + 1] = first_chunk[i] + (experts[i].count + kRowChunk - 1) / kRowChunk;
  }
  // Tasks of the first half that a chunk of rows still waits for.
  std::vector<std::atomic<std::int32_t>> left(static_cast<std::size_t>(first_chunk.back()));
  // Cuts one matrix, or two of one shape side by side, for the rows of expert i.
  const auto cut = [&](std::vector<Task>& tasks, std::size_t i, std::int32_t panels,
                       std::size_t panel_bytes) {
    const ExpertRows& rows = experts[i];
    const std::size_t most_bytes = rows.count <= kFewRows ? PanelRuns::kAnyBytes : kSharedBytes;
    for (std::int32_t begin = 0, end = 0; rows.count > 0 && begin < panels; begin = end) {
      end = begin + runs.take(panels - begin, panel_bytes, most_bytes);
      for (std::int32_t row = 0; row < rows.count; row += kRowChunk) {
        tasks.push_back({static_cast<std::int32_t>(i), first_chunk[i] + row / kRowChunk,
                         rows.first + row, std::min(kRowChunk, rows.count - row), begin, end});
      }
    }
  };
  for (std::size_t i = 0; i < experts.size(); ++i) {
    const ExpertRows& rows = experts[i];
    MOIETY_CHECK(rows.first >= 0 && rows.count >= 0 && rows.first + rows.count <= x.m(),
                 "rows that are not there");
    check_shape(*rows.weights, hidden);
    widest = std::max(widest, rows.weights->gate.n());
    const PackedMatrix& gate = rows.weights->gate;
    cut(first_half_, i, gate.num_panels(), 2 * gate.panel_bytes());
  }
  for (const Task& task : first_half_) ++left[static_cast<std::size_t>(task.chunk)];
  for (std::size_t i = 0; i < experts.size(); ++i) {
    const PackedMatrix& matrix = experts[i].weights->down;
    cut(second_half_, i, matrix.num_panels(), matrix.panel_bytes());
  }
  // One width for all keeps the rows apart by the same stride; experts of one layer have one width.
  for (const ExpertRows& rows : experts) {
    MOIETY_CHECK(rows.weights->gate.n() == widest, "experts of one batch differ in width");
  }
  if (first_half_.empty()) return;
  hidden_.reset(x.variant(), x.weights(), x.m(), widest);
  const std::size_t floats_stride = row_stride(static_cast<std::size_t>(widest));
  const auto float_row = [&](std::int32_t row) {
    return hidden_floats_.data() + static_cast<std::size_t>(row) * floats_stride;
  };
  if (hidden_.has_row_scales()) {
    const std::size_t size = static_cast<std::size_t>(x.m()) * floats_stride;
    if (hidden_floats_.size() < size) hidden_floats_.resize(size);
  }
  scratch_.resize(pool.num_threads());
  SiluMulFn* silu_mul = silu_mul_kernel(x.variant());

  // Tasks are handed out in order, so a thread's next one is probably as far on as there are
  // threads. Nothing where it is of the other half: its panels have another size.
  const auto next_weights = [&](std::size_t index) -> const std::byte* {
    const std::size_t next = index + pool.num_threads();
    if (next >= first_half_.size() + second_half_.size()) return nullptr;
    const bool is_first = next < first_half_.size();
    if (is_first != (index < first_half_.size())) return nullptr;
    const Task& task = is_first ? first_half_[next] : second_half_[next - first_half_.size()];
    const ExpertWeights& weights = *experts[static_cast<std::size_t>(task.expert)].weights;
    const PackedMatrix& matrix = is_first ? weights.gate : weights.down;
    return matrix.panel(task.panel_begin);
  };
  const auto gate_and_up = [&](std::size_t index, AlignedFloats& scratch) {
    const Task& task = first_half_[index];
    const ExpertWeights& weights = *experts[static_cast<std::size_t>(task.expert)].weights;
    const std::int32_t columns = std::min(weights.gate.n(), task.panel_end * kPanelColumns) -
                                 task.panel_begin * kPanelColumns;
    const std::size_t size = static_cast<std::size_t>(task.num_rows) * columns;
    if (scratch.size() < 2 * size) scratch.resize(2 * size);
    LinearPart part{task.first_row,
                    task.num_rows,
                    task.panel_begin,
                    task.panel_end,
                    scratch.data(),
                    columns,
                    weights.up.panel(task.panel_begin)};
    linear_part(weights.gate, x, part);
    part.y += size;
    part.next = next_weights(index);
    linear_part(weights.up, x, part);
    silu_mul(scratch.data(), scratch.data() + size, size);
    const std::int32_t first_column = task.panel_begin * kPanelColumns;
    for (std::int32_t row = 0; row < task.num_rows; ++row) {
      const float* values = scratch.data() + static_cast<std::ptrdiff_t>(row) * columns;
      if (hidden_.has_row_scales()) {
        std::copy_n(values, columns, float_row(task.first_row + row) + first_column);
      } else {
        hidden_.set(task.first_row + row, first_column, columns, values);
      }
    }
    auto& chunk_left = left[static_cast<std::size_t>(task.chunk)];
    if (hidden_.has_row_scales()) {
      // Whoever comes last rounds the rows, before the chunk counts as done.
      for (std::int32_t others = chunk_left.load(); others > 1;) {
        if (chunk_left.compare_exchange_weak(others, others - 1)) return;
      }
      for (std::int32_t row = task.first_row; row < task.first_row + task.num_rows; ++row) {
        hidden_.set_row(row, float_row(row));
      }
    }
    chunk_left.fetch_sub(1, std::memory_order_release);
  };
  const auto down = [&](std::size_t index) {
    const Task& task = second_half_[index - first_half_.size()];
    wait_for(left[static_cast<std::size_t>(task.chunk)]);
    const PackedMatrix& weights = experts[static_cast<std::size_t>(task.expert)].weights->down;
    float* first = y + task.first_row * y_stride + task.panel_begin * kPanelColumns;
    linear_part(weights, hidden_,
                {task.first_row, task.num_rows, task.panel_begin, task.panel_end, first, y_stride,
                 next_weights(index)});
  };
  pool.parallel_for(first_half_.size() + second_half_.size(),
                    [&](std::size_t index, std::size_t thread) {
                      if (index < first_half_.size()) {
                        gate_and_up(index, scratch_[thread]);
                      } else {
                        down(index);
                      }
                    });
}

}  // namespace moiety::kernels
