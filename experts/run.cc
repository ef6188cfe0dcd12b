#include "experts/run.h"

#include <algorithm>

#include "kernels/elementwise.h"

namespace moiety {
namespace {

// Enough to reuse an expert's weights, small enough to share out.
constexpr std::size_t kRowsPerTask = 32;
// Of one layer: bounds what a batch can make us allocate.
constexpr std::int32_t kMaxExperts = 1 << 16;

}  // namespace

Result<void> ExpertRunner::run(const ExpertStore& store,
                               std::int32_t layer,
                               std::int32_t hidden_size,
                               std::span<const float> rows,
                               const PairList& pairs,
                               std::span<float> pair_rows) {
  const auto hidden = static_cast<std::size_t>(hidden_size);
  if (rows.size() != pairs.num_rows() * hidden || pair_rows.size() != pairs.num_pairs() * hidden) {
    return fail(ErrorCode::kInvalidArgument, "rows and pairs of a batch do not fit each other");
  }
  // A stable counting sort of the pairs by expert: within an expert, pairs keep row order.
  std::int32_t max_expert = -1;
  for (std::int32_t expert : pairs.experts) {
    if (expert < 0 || expert >= kMaxExperts) {
      return fail(ErrorCode::kInvalidArgument,
                  "expert id " + std::to_string(expert) + " in a batch");
    }
    max_expert = std::max(max_expert, expert);
  }
  std::vector<std::size_t> offsets(static_cast<std::size_t>(max_expert) + 2, 0);
  for (std::int32_t expert : pairs.experts) ++offsets[static_cast<std::size_t>(expert) + 1];
  std::vector<std::shared_ptr<const kernels::ExpertWeights>> resident;
  std::vector<Task> tasks;
  for (std::size_t expert = 0; expert + 1 < offsets.size(); ++expert) {
    const std::size_t count = offsets[expert + 1];
    offsets[expert + 1] += offsets[expert];
    if (count == 0) continue;
    auto weights = store.find({layer, static_cast<std::int32_t>(expert)});
    if (weights == nullptr || weights->gate.k() != hidden_size) {
      return fail(ErrorCode::kFailedPrecondition, "expert " + std::to_string(expert) +
                                                      " of layer " + std::to_string(layer) +
                                                      " is not loaded here");
    }
    resident.push_back(std::move(weights));
    for (std::size_t first = 0; first < count; first += kRowsPerTask) {
      tasks.push_back({resident.size() - 1, offsets[expert] + first,
                       offsets[expert] + std::min(count, first + kRowsPerTask)});
    }
  }
  std::vector<std::size_t> pair_order(pairs.num_pairs());
  std::vector<std::size_t> row_of_pair(pairs.num_pairs());
  std::vector<std::size_t> next(offsets.begin(), offsets.end());
  for (std::size_t row = 0; row < pairs.num_rows(); ++row) {
    for (std::size_t pair = pairs.row_offsets[row]; pair < pairs.row_offsets[row + 1]; ++pair) {
      row_of_pair[pair] = row;
      pair_order[next[static_cast<std::size_t>(pairs.experts[pair])]++] = pair;
    }
  }

  scratch_.resize(pool_.num_threads());
  pool_.parallel_for(tasks.size(), [&](std::size_t index, std::size_t thread) {
    const Task& task = tasks[index];
    const kernels::ExpertWeights& weights = *resident[task.expert];
    const std::size_t count = task.last - task.first;
    const auto m = static_cast<std::int32_t>(count);
    std::vector<float>& scratch = scratch_[thread];
    const std::size_t need = 2 * count * hidden + kernels::expert_scratch_floats(weights, m);
    if (scratch.size() < need) scratch.resize(need);
    float* x = scratch.data();
    float* y = x + count * hidden;
    for (std::size_t i = 0; i < count; ++i) {
      std::copy_n(&rows[row_of_pair[pair_order[task.first + i]] * hidden], hidden, x + i * hidden);
    }
    kernels::expert_ffn(variant_, weights, x, m, y, std::span(scratch).subspan(2 * count * hidden));
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t pair = pair_order[task.first + i];
      const float weight = pairs.weights[pair];
      float* out = &pair_rows[pair * hidden];
      for (std::size_t j = 0; j < hidden; ++j) out[j] = weight * y[i * hidden + j];
    }
  });
  return {};
}

void reduce_pairs(const PairList& pairs,
                  std::int32_t hidden_size,
                  std::span<const float> pair_rows,
                  std::span<float> y) {
  const auto hidden = static_cast<std::size_t>(hidden_size);
  std::fill(y.begin(), y.end(), 0.0f);
  for (std::size_t row = 0; row < pairs.num_rows(); ++row) {
    for (std::size_t pair = pairs.row_offsets[row]; pair < pairs.row_offsets[row + 1]; ++pair) {
      kernels::add(y.subspan(row * hidden, hidden), &pair_rows[pair * hidden]);
    }
  }
}

}  // namespace moiety
