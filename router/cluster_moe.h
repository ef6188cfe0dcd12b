#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "experts/exchange.h"
#include "fabric/lane.h"
#include "router/step_backend.h"

namespace moiety {

struct ClusterMoeOptions {
  std::uint64_t router_id = 0;
  CombineMode combine = CombineMode::kPerWorker;
  DType dtype = DType::kBF16;  ///< how rows travel: the model's GEMM input type
  std::chrono::milliseconds reply_timeout{
      10000};  ///< a worker that is silent for longer counts as lost
  std::chrono::milliseconds connect_timeout{2000};
};

/// Dispatches each token once to every worker that holds one of its experts, and combines what
/// comes back.
///
/// Every message of a layer is sent before any reply is waited for; a worker that no row selects
/// hears nothing. A lost or silent worker fails just the rows that needed it, and is reported
/// through `on_suspect`.
class ClusterMoe final : public StepBackend {
 public:
  ClusterMoe(std::unique_ptr<fabric::RouterLane> lane,
             const ClusterMoeOptions& options,
             SuspectCallback on_suspect);

  void begin(const MoeLayerInput& input) override;
  void finish(std::span<float> y, std::span<std::uint8_t> failed) override;
  void begin_step(std::uint64_t step) override;
  std::vector<WorkerId> apply(const EpochView& view) override;
  Error failure() const override { return failure_; }
  void idle_wait(Deadline deadline) override;
  void interrupt() override { lane_->interrupt(); }

  BackendStats stats() const override;

 private:
  /// One worker's share of the layer under way.
  struct Part {
    Dispatch dispatch;
    std::vector<std::uint32_t> rows;   // its rows' numbers in the step
    std::vector<std::uint32_t> slots;  // per pair: row * top_k + slot, in the step
    fabric::Header header;
    bool sent = false;
    bool done = false;
    bool refused = false;  // answered with an error: failure_ says which
    std::vector<float> reply;
  };

  void build_parts();
  void await_replies();
  void take_reply(WorkerId worker, Part& part, const fabric::Event& event);
  void lose(WorkerId worker, const std::string& why);
  void combine_per_worker(std::span<float> y);
  void combine_per_expert(std::span<float> y);

  std::unique_ptr<fabric::RouterLane> lane_;
  const ClusterMoeOptions options_;
  const SuspectCallback on_suspect_;
  Epoch epoch_;
  // owner_[layer][expert]: the worker to ask, or nothing. One of the connected owners, the lowest
  // id.
  std::vector<std::vector<std::vector<WorkerId>>> owners_;
  std::map<WorkerId, std::uint64_t> incarnations_;  // of the workers that we are connected to
  std::uint64_t step_ = 0;
  MoeLayerInput input_;
  std::map<WorkerId, Part> parts_;        // in worker order
  std::vector<std::uint8_t> row_failed_;  // of the layer under way
  Clock::time_point sent_at_;
  Error failure_;
  BackendStats stats_;
};

}  // namespace moiety
