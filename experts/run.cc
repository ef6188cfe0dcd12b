#include "experts/run.h"

#include <algorithm>

#include "common/check.h"
#include "kernels/elementwise.h"

namespace moiety {
namespace {

// Of one layer: bounds what a batch can make us allocate.
constexpr std::int32_t kMaxExperts = 1 << 16;
// Below this many bytes copying rows on several threads costs more than it saves.
constexpr std::size_t kSerialBytes = 128 << 10;

}  // namespace

Result<void> ExpertRunner::compute(const ExpertStore& store,
                                   std::int32_t layer,
                                   std::int32_t hidden_size,
                                   std::span<const float> rows,
                                   const PairList& pairs) {
  const auto hidden = static_cast<std::size_t>(hidden_size);
  if (rows.size() != pairs.num_rows() * hidden) {
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
  offsets_.assign(static_cast<std::size_t>(max_expert) + 2, 0);
  for (std::int32_t expert : pairs.experts) ++offsets_[static_cast<std::size_t>(expert) + 1];
  resident_.clear();
  groups_.clear();
  for (std::size_t expert = 0; expert + 1 < offsets_.size(); ++expert) {
    const std::int32_t count = offsets_[expert + 1];
    offsets_[expert + 1] += offsets_[expert];
    if (count == 0) continue;
    auto weights = store.find({layer, static_cast<std::int32_t>(expert)});
    if (weights == nullptr || weights->gate.k() != hidden_size) {
      return fail(ErrorCode::kFailedPrecondition, "expert " + std::to_string(expert) +
                                                      " of layer " + std::to_string(layer) +
                                                      " is not loaded here");
    }
    groups_.push_back({weights.get(), offsets_[expert], count});
    resident_.push_back(std::move(weights));
  }
  place_of_.resize(pairs.num_pairs());
  if (groups_.empty()) return {};
  const DType dtype = groups_.front().weights->gate.dtype();

  // Rounded once per row, then copied to every expert that wants it.
  inputs_.reset(variant_, dtype, static_cast<std::int32_t>(pairs.num_rows()), hidden_size);
  const auto num_pairs = static_cast<std::int32_t>(pairs.num_pairs());
  grouped_.reset(variant_, dtype, num_pairs, hidden_size);
  for (std::size_t pair = 0; pair < pairs.num_pairs(); ++pair) {
    const std::int32_t place = offsets_[static_cast<std::size_t>(pairs.experts[pair])]++;
    place_of_[pair] = place;
  }
  const auto spread_row = [&](std::size_t row, std::size_t) {
    const auto index = static_cast<std::int32_t>(row);
    inputs_.set_row(index, &rows[row * hidden]);
    for (std::size_t pair = pairs.row_offsets[row]; pair < pairs.row_offsets[row + 1]; ++pair) {
      grouped_.copy_row(place_of_[pair], inputs_, index);
    }
  };
  for_rows(pairs, hidden * sizeof(bf16), spread_row);
  results_stride_ = row_stride(hidden);
  results_.resize(pairs.num_pairs() * results_stride_);
  experts_.run(grouped_, groups_, results_.data(), static_cast<std::ptrdiff_t>(results_stride_),
               pool_);
  return {};
}

template <class Body>
void ExpertRunner::for_rows(const PairList& pairs, std::size_t pair_bytes, const Body& body) {
  if (pairs.num_pairs() * pair_bytes < kSerialBytes) {
    for (std::size_t row = 0; row < pairs.num_rows(); ++row) body(row, 0);
  } else {
    pool_.parallel_for(pairs.num_rows(), body);
  }
}

void ExpertRunner::sum_pairs(const PairList& pairs,
                             std::size_t first,
                             std::size_t end,
                             std::span<float> sum) const {
  std::fill(sum.begin(), sum.end(), 0.0f);
  for (std::size_t pair = first; pair < end; ++pair) {
    kernels::add(sum, &results_[static_cast<std::size_t>(place_of_[pair]) * results_stride_],
                 pairs.weights[pair]);
  }
}

Result<void> ExpertRunner::run_pairs(const ExpertStore& store,
                                     std::int32_t layer,
                                     std::int32_t hidden_size,
                                     std::span<const float> rows,
                                     const PairList& pairs,
                                     std::span<float> pair_rows) {
  const auto hidden = static_cast<std::size_t>(hidden_size);
  MOIETY_TRY(compute(store, layer, hidden_size, rows, pairs));
  MOIETY_CHECK(pair_rows.size() == pairs.num_pairs() * hidden, "one row for each pair");
  for_rows(pairs, hidden * sizeof(float), [&](std::size_t row, std::size_t) {
    for (std::size_t pair = pairs.row_offsets[row]; pair < pairs.row_offsets[row + 1]; ++pair) {
      sum_pairs(pairs, pair, pair + 1, pair_rows.subspan(pair * hidden, hidden));
    }
  });
  return {};
}

Result<void> ExpertRunner::run_rows(const ExpertStore& store,
                                    std::int32_t layer,
                                    std::int32_t hidden_size,
                                    std::span<const float> rows,
                                    const PairList& pairs,
                                    std::span<float> y) {
  const auto hidden = static_cast<std::size_t>(hidden_size);
  MOIETY_TRY(compute(store, layer, hidden_size, rows, pairs));
  MOIETY_CHECK(y.size() == pairs.num_rows() * hidden, "one sum for each row");
  for_rows(pairs, hidden * sizeof(float), [&](std::size_t row, std::size_t) {
    sum_pairs(pairs, pairs.row_offsets[row], pairs.row_offsets[row + 1],
              y.subspan(row * hidden, hidden));
  });
  return {};
}

}  // namespace moiety
