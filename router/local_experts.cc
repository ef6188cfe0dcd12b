#include "router/local_experts.h"

#include <algorithm>
#include <set>
#include <utility>

#include "common/check.h"
#include "common/log.h"

namespace moiety {
namespace {

// Read between two looks at whether to go on.
constexpr std::size_t kAtOnce = 64;

}  // namespace

LocalExperts::LocalExperts(const LocalExpertOptions& options, std::function<void()> on_loaded)
    : store_(*options.checkpoint, options.dtype),
      runner_(options.variant, *options.pool),
      on_loaded_(std::move(on_loaded)),
      thread_([this] { work(); }) {}

LocalExperts::~LocalExperts() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void LocalExperts::load(std::vector<ExpertId> experts) {
  {
    const std::lock_guard lock(mutex_);
    wanted_ = std::move(experts);
    loading_ = true;
    loaded_ = false;
  }
  wake_.notify_one();
}

bool LocalExperts::loading() const {
  const std::lock_guard lock(mutex_);
  return loading_;
}

bool LocalExperts::take_loaded() {
  const std::lock_guard lock(mutex_);
  return std::exchange(loaded_, false);
}

void LocalExperts::keep_only(const std::vector<ExpertId>& experts) {
  MOIETY_CHECK(!loading(), "experts are dropped while others are read");
  store_.keep_only({experts.begin(), experts.end()});
}

bool LocalExperts::read(const std::vector<ExpertId>& experts) {
  const std::span<const ExpertId> all(experts);
  for (std::size_t i = 0; i < all.size(); i += kAtOnce) {
    const auto loaded = store_.load(all.subspan(i, std::min(kAtOnce, all.size() - i)));
    if (!loaded) {
      log_error(
          "this router shall hold {} experts and cannot read those from expert {} of layer {} "
          "on, so they are missing: {}",
          all.size(), all[i].expert, all[i].layer, loaded.error().message);
      return true;
    }
    const std::lock_guard lock(mutex_);
    if (stop_ || wanted_) return false;
  }
  return true;
}

void LocalExperts::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [&] { return stop_ || wanted_; });
    if (stop_) return;
    const std::vector<ExpertId> experts = *std::exchange(wanted_, std::nullopt);
    lock.unlock();
    const bool done = read(experts);
    lock.lock();
    if (!done || wanted_) continue;
    loading_ = false;
    loaded_ = true;
    lock.unlock();
    log_info("this router holds {} experts ({} bytes) itself", store_.num_experts(),
             store_.bytes_resident());
    on_loaded_();
    lock.lock();
  }
}

Result<void> LocalExperts::run(std::int32_t layer,
                               const Dispatch& dispatch,
                               std::span<float> reply) {
  return dispatch.combine == CombineMode::kPerExpert
             ? runner_.run_pairs(store_, layer, dispatch.hidden_size, dispatch.rows, dispatch.pairs,
                                 reply)
             : runner_.run_rows(store_, layer, dispatch.hidden_size, dispatch.rows, dispatch.pairs,
                                reply);
}

}  // namespace moiety
