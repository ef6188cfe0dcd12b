#include "router/local_moe.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

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

void LocalMoe::begin(const MoeLayerInput& input) {
  MOIETY_CHECK(inputs_.size() < kMaxInFlight, "too many layers in flight");
  inputs_.push_back(input);
}

void LocalMoe::finish(std::span<float> y, std::span<std::uint8_t> failed) {
  const MoeLayerInput input = inputs_.front();
  inputs_.pop_front();
  const PairList pairs = make_pairs(input);
  if (auto done = runner_.run_rows(store_, input.layer, input.hidden_size, input.rows, pairs, y);
      !done) {
    failure_ = done.error();
    std::fill(y.begin(), y.end(), 0.0f);
    std::fill(failed.begin(), failed.end(), std::uint8_t{kRowRefused});
  }
}

std::optional<std::vector<WorkerId>> LocalMoe::applied() {
  if (!std::exchange(switching_, false)) return std::nullopt;
  return std::vector<WorkerId>{};
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
