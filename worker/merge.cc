#include "worker/merge.h"

#include "common/check.h"

namespace moiety {

void append_dispatch(Dispatch& batch, const Dispatch& dispatch) {
  MOIETY_CHECK(batch.hidden_size == dispatch.hidden_size && batch.combine == dispatch.combine,
               "only dispatches of one shape and combine mode make a batch");
  PairList& pairs = batch.pairs;
  const PairList& more = dispatch.pairs;
  const auto before = static_cast<std::uint32_t>(pairs.num_pairs());
  if (pairs.row_offsets.empty()) pairs.row_offsets.push_back(0);
  for (std::size_t row = 0; row < more.num_rows(); ++row)
    pairs.row_offsets.push_back(before + more.row_offsets[row + 1]);
  pairs.experts.insert(pairs.experts.end(), more.experts.begin(), more.experts.end());
  pairs.weights.insert(pairs.weights.end(), more.weights.begin(), more.weights.end());
  batch.rows.insert(batch.rows.end(), dispatch.rows.begin(), dispatch.rows.end());
}

std::size_t reply_values(const Dispatch& dispatch) {
  const std::size_t rows = dispatch.combine == CombineMode::kPerExpert ? dispatch.pairs.num_pairs()
                                                                       : dispatch.pairs.num_rows();
  return rows * static_cast<std::size_t>(dispatch.hidden_size);
}

}  // namespace moiety
