#pragma once

#include <condition_variable>
#include <mutex>
#include <vector>

#include "experts/run.h"
#include "experts/store.h"
#include "router/step_backend.h"

namespace moiety {

/// Embedded mode: this process holds the experts. The reference that a cluster's answers are
/// compared with.
class LocalMoe final : public StepBackend {
 public:
  /// `store` and `pool` outlive it.
  LocalMoe(const ExpertStore& store, kernels::Variant variant, ThreadPool& pool);

  void begin(const MoeLayerInput& input) override;
  void finish(std::span<float> y, std::span<std::uint8_t> failed) override;
  void begin_step(std::uint64_t) override {}
  std::vector<WorkerId> apply(const EpochView&) override { return {}; }
  Error failure() const override { return failure_; }
  void idle_wait(Deadline deadline) override;
  void interrupt() override;

 private:
  const ExpertStore& store_;
  ExpertRunner runner_;
  MoeLayerInput input_;
  Error failure_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool interrupted_ = false;  // guarded by mutex_
};

/// The (expert, weight) pairs of every row that has not failed, in slot order.
PairList make_pairs(const MoeLayerInput& input);

}  // namespace moiety
