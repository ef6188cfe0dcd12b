#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <vector>

#include "experts/run.h"
#include "experts/store.h"
#include "router/step_backend.h"

namespace moiety {

/// Embedded mode: this process holds the experts. The reference that a cluster's answers are
/// compared with. An expert that is not there fails its rows for good (kRowRefused).
class LocalMoe final : public StepBackend {
 public:
  /// `store` and `pool` outlive it.
  LocalMoe(const ExpertStore& store, kernels::Variant variant, ThreadPool& pool);

  void begin(const MoeLayerInput& input) override;
  void finish(std::span<float> y, std::span<std::uint8_t> failed) override;
  void begin_step(std::uint64_t) override {}
  void apply(const EpochView&) override { switching_ = true; }
  std::optional<std::vector<WorkerId>> applied() override;
  Error failure() const override { return failure_; }
  HeldExperts held() const override { return {store_.num_experts(), store_.bytes_resident()}; }
  void idle_wait(Deadline deadline) override;
  void interrupt() override;

 private:
  const ExpertStore& store_;
  ExpertRunner runner_;
  std::deque<MoeLayerInput> inputs_;  // of layers begun and not finished
  bool switching_ = false;
  Error failure_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool interrupted_ = false;  // guarded by mutex_
};

/// The (expert, weight) pairs of every row that has not failed, in slot order.
PairList make_pairs(const MoeLayerInput& input);

}  // namespace moiety
