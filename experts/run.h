#pragma once

#include <cstdint>
#include <span>
#include <vector>

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
  Result<void> run(const ExpertStore& store,
                   std::int32_t layer,
                   std::int32_t hidden_size,
                   std::span<const float> rows,
                   const PairList& pairs,
                   std::span<float> pair_rows);

 private:
  struct Task {
    std::size_t expert;       // index into `resident`
    std::size_t first, last;  // range of the pair order
  };
  const kernels::Variant variant_;
  ThreadPool& pool_;
  std::vector<std::vector<float>> scratch_;  // per thread: gathered rows, results, FFN scratch
};

/// y[row] = sum over the row's pairs in slot order, starting from zero. y is [num_rows,
/// hidden_size].
void reduce_pairs(const PairList& pairs,
                  std::int32_t hidden_size,
                  std::span<const float> pair_rows,
                  std::span<float> y);

}  // namespace moiety
