#include "router/local_experts.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "common/check.h"
#include "common/log.h"

namespace moiety {
namespace {

// Read between two looks at whether to go on.
constexpr std::size_t kAtOnce = 64;
constexpr std::chrono::milliseconds kFirstRetry{200};
constexpr std::chrono::milliseconds kSlowestRetry{5000};

}  // namespace

LocalExperts::LocalExperts(const LocalExpertOptions& options, std::function<void()> on_loaded)
    : store_(*options.checkpoint, options.dtype),
      runner_(options.variant, *options.pool),
      on_failed_(options.on_failed),
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

void LocalExperts::load(Epoch epoch, std::vector<ExpertId> experts) {
  {
    const std::lock_guard lock(mutex_);
    wanted_ = Load{epoch, std::move(experts)};
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

bool LocalExperts::holds(const std::vector<ExpertId>& experts) const {
  const std::vector<ExpertId> held = store_.resident();
  return std::includes(held.begin(), held.end(), experts.begin(), experts.end());
}

void LocalExperts::keep_only(const std::vector<ExpertId>& experts) {
  MOIETY_CHECK(!loading(), "experts are dropped while others are read");
  store_.keep_only({experts.begin(), experts.end()});
}

std::optional<Result<void>> LocalExperts::attempt(const Load& load) {
  const std::span<const ExpertId> all(load.experts);
  for (std::size_t i = 0; i < all.size(); i += kAtOnce) {
    if (auto loaded = store_.load(all.subspan(i, std::min(kAtOnce, all.size() - i))); !loaded)
      return loaded;
    const std::lock_guard lock(mutex_);
    if (stop_ || wanted_) return std::nullopt;
  }
  return Result<void>();
}

bool LocalExperts::read(const Load& load) {
  std::chrono::milliseconds backoff = kFirstRetry;
  for (;;) {
    const std::optional<Result<void>> read = attempt(load);
    if (!read) return false;
    if (*read) return true;
    log_error(
        "epoch {} wants routers to hold {} experts; they cannot be read here, next try in {} "
        "ms: {}",
        load.epoch.value, load.experts.size(), backoff.count(), read->error().message);
    if (on_failed_) on_failed_(load.epoch, read->error());
    std::unique_lock lock(mutex_);
    if (wake_.wait_for(lock, backoff, [&] { return stop_ || wanted_; })) return false;
    backoff = std::min(2 * backoff, kSlowestRetry);
  }
}

void LocalExperts::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [&] { return stop_ || wanted_; });
    if (stop_) return;
    const Load load = *std::exchange(wanted_, std::nullopt);
    lock.unlock();
    const bool done = read(load);
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
