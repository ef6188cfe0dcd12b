#include "router/local_moe.h"

#include <algorithm>

namespace moiety {

PairList make_pairs(const MoeLayerInput& input) {
  PairList pairs;
  pairs.row_offsets.reserve(static_cast<std::size_t>(input.num_rows) + 1);
  pairs.row_offsets.push_back(0);
  for (std::size_t i = 0; i < input.topk_ids.size(); ++i) {
    if (input.topk_ids[i] >= 0) {
      pairs.experts.push_back(input.topk_ids[i]);
      pairs.weights.push_back(input.topk_weights[i]);
    }
    if ((i + 1) % static_cast<std::size_t>(input.top_k) == 0) {
      pairs.row_offsets.push_back(static_cast<std::uint32_t>(pairs.num_pairs()));
    }
  }
  return pairs;
}

LocalMoe::LocalMoe(const ExpertStore& store, kernels::Variant variant, ThreadPool& pool)
    : store_(store), runner_(variant, pool) {}

void LocalMoe::begin(const MoeLayerInput& input) { input_ = input; }

void LocalMoe::finish(std::span<float> y, std::span<std::uint8_t> failed) {
  const PairList pairs = make_pairs(input_);
  if (auto done = runner_.run_rows(store_, input_.layer, input_.hidden_size, input_.rows, pairs, y);
      !done) {
    failure_ = done.error();
    std::fill(y.begin(), y.end(), 0.0f);
    std::fill(failed.begin(), failed.end(), std::uint8_t{1});
    return;
  }
}

void LocalMoe::idle_wait(Deadline deadline) {
  std::unique_lock lock(mutex_);
  wake_.wait_until(lock, deadline, [&] { return interrupted_; });
  interrupted_ = false;
}

void LocalMoe::interrupt() {
  {
    const std::lock_guard lock(mutex_);
    interrupted_ = true;
  }
  wake_.notify_one();
}

}  // namespace moiety
