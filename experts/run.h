#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/aligned.h"
#include "common/thread_pool.h"
#include "experts/exchange.h"
#include "experts/store.h"
#include "kernels/variant.h"

namespace moiety {

/// Runs batches of (token, expert) pairs on resident experts: the same code in a worker and in
/// embedded mode. Keeps scratch memory between calls; one caller at a time.
class ExpertRunner {
 public:
  ExpertRunner(kernels::Variant variant, ThreadPool& pool) : variant_(variant), pool_(pool) {}

  /// Computes every pair of one layer.
  ///
  ///   rows       [num_rows, hidden_size]
  ///   pair_rows  [num_pairs, hidden_size]   out: weight * expert(row), fp32
  ///
  /// A pair's bits depend on its row, expert and weight only. kFailedPrecondition names an expert
  /// that is not resident; kInvalidArgument a list whose shape does not fit. Nothing is written
  /// then.
  Result<void> run_pairs(const ExpertStore& store,
                         std::int32_t layer,
                         std::int32_t hidden_size,
                         std::span<const float> rows,
                         const PairList& pairs,
                         std::span<float> pair_rows);

  /// The same, with each row's pairs summed: y [num_rows, hidden_size], from zero, in slot order.
  Result<void> run_rows(const ExpertStore& store,
                        std::int32_t layer,
                        std::int32_t hidden_size,
                        std::span<const float> rows,
                        const PairList& pairs,
                        std::span<float> y);

 private:
  Result<void> compute(const ExpertStore& store,
                       std::int32_t layer,
                       std::int32_t hidden_size,
                       std::span<const float> rows,
                       const PairList& pairs);
  /// sum = the weighted results of pairs [first, end), from zero, in their order.
  void sum_pairs(const PairList& pairs,
                 std::size_t first,
                 std::size_t end,
                 std::span<float> sum) const;
  template <class Body>
  void for_rows(const PairList& pairs, std::size_t pair_bytes, const Body& body);

  const kernels::Variant variant_;
  ThreadPool& pool_;
  kernels::GroupedExperts experts_;
  // Of the last batch. `place`: a pair's position when pairs are grouped by expert.
  std::vector<std::int32_t> offsets_;
  std::vector<std::shared_ptr<const kernels::ExpertWeights>> resident_;
  std::vector<kernels::ExpertRows> groups_;
  kernels::InputRows inputs_, grouped_;  // by row; by place
  std::vector<std::int32_t> place_of_;   // by pair
  AlignedFloats results_;                // by place; rows results_stride_ apart
  std::size_t results_stride_ = 0;
};

}  // namespace moiety
