#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/placement.h"
#include "model/model.h"
#include "router/micro_batch_choice.h"
#include "router/request.h"
#include "router/scheduler.h"
#include "router/step_backend.h"

namespace moiety {

struct EngineOptions {
  std::int32_t max_num_seqs = 64;             ///< sequences in one step
  std::int32_t max_num_batched_tokens = 512;  ///< tokens in one step; see Scheduler
  /// Requests that must wait for a place or blocks, and of a deployment for experts as well;
  /// beyond: kResourceExhausted.
  std::int32_t max_queue = 1024;
  std::uint64_t kv_cache_bytes = 512u << 20;
  bool prefix_cache = true;  ///< keep KV blocks of ended sequences for those that begin alike
  MicroBatches micro_batches = MicroBatches::kAuto;
};

/// What the step loop reports; called on its thread after each step or request. Must not block.
struct EngineObserver {
  virtual ~EngineObserver() = default;
  virtual void on_step(double seconds, std::size_t rows) = 0;
  /// topk_ids of one step: per layer [rows, top_k].
  virtual void on_experts(const std::vector<std::vector<std::int32_t>>& topk_ids) = 0;
  virtual void on_backend(const BackendStats& stats) = 0;
  /// A request's first step begins; `seconds` since submit.
  virtual void on_start(double /*seconds*/) {}
  /// A request's first token was handed out; `seconds` since submit.
  virtual void on_first_token(double /*seconds*/) {}
  /// A later one; `seconds` since the one before.
  virtual void on_next_token(double /*seconds*/) {}
  virtual void on_request_end(const std::string& deployment, const Finish& finish) = 0;
};

/// The step loop: continuous batching over a model and a backend, on a thread of its own. The same
/// loop drives embedded mode and the cluster.
///
/// What a step computes, who waits and who is preempted is the Scheduler's to say, with its rule of
/// fairness. A batch may mix deployments: each row has its own mask, and a request keeps the one
/// that it started with. Sampling runs in the model's pool; callbacks come in order of the step's
/// rows on the loop's thread.
///
/// Rows may fail because experts that they need are on no worker in reach. That loses nothing: the
/// sequence keeps its tokens and blocks (a step writes k and v of the same positions again), and
/// does what its deployment's MissingPolicy says. kWait: it is parked until experts have come into
/// reach again, at most until the request's deadline. kMask: it goes on under a mask without them,
/// if every layer keeps as many experts as a token selects (else it is parked), and under its own
/// again when they are back. kFail: it ends with kWorkerLost. All other sequences go on. One whose
/// deployment is in the new epoch no more finishes if its experts are still placed somewhere, else
/// it ends with kNotFound at once.
///
/// The same request gives the same bits alone, in any batch, in any
/// chunks, preempted or not, cached or not, as far as the backend gives the same sums. The
/// destructor ends all requests with kUnavailable and joins.
class Engine {
 public:
  using RequestId = std::uint64_t;

  /// `model`, `backend` and `observer` (may be null) outlive the engine.
  Engine(const Model& model,
         StepBackend& backend,
         const EngineOptions& options,
         EngineObserver* observer);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Queues a request; any thread. Errors, before any callback: kNotFound (no such deployment, or
  /// it is draining), kInvalidArgument (empty prompt, ids outside the vocabulary, prompt +
  /// max_tokens beyond the context or the whole KV cache), kUnavailable (no epoch yet, or
  /// draining), kResourceExhausted (queue full: it would have to wait, and max_queue requests have
  /// to already, be they known to the step loop or not; of those that wait for experts, its own
  /// deployment's count).
  Result<RequestId> submit(GenerateRequest request, RequestCallbacks callbacks);

  /// Ends a request with kCancelled at the next step boundary: its KV blocks are free for that
  /// step. Unknown ids are ignored. Any thread.
  void cancel(RequestId id);

  /// Refuses new requests from now on (kUnavailable), and ends those that are not done at
  /// `deadline` in the same way. Any thread.
  void drain(Deadline deadline);

  /// Hands the loop a new epoch; `on_active` is called on its thread when steps use it and no older
  /// one, with the workers that could not be reached. A newer view replaces one that is not active
  /// yet, and whose `on_active` is then never called. Any thread.
  void apply(EpochView view, std::function<void(Epoch, std::vector<WorkerId> lost)> on_active);

  struct DeploymentInfo {
    std::string name;
    bool draining = false;
  };
  /// Deployments of the current epoch; any thread.
  std::vector<DeploymentInfo> deployments() const;
  Epoch epoch() const;
  /// All taken at one moment: a deployment that drains in `epoch` takes no request that is not
  /// counted.
  struct Load {
    Epoch epoch;
    std::uint64_t running = 0, waiting = 0;  ///< preempted ones wait
    std::uint64_t parked = 0;                ///< of those running: wait for experts
    std::uint64_t retries = 0;  ///< parts of steps computed again because experts were missing
    std::uint64_t masked = 0;   ///< requests that went on without missing experts
    std::map<std::string, std::uint64_t> per_deployment;  ///< running and waiting
    SchedulerStats scheduler;                             ///< as of the last step or ended request
    HeldExperts held;
  };
  Load load() const;
  const Model& model() const { return model_; }
  /// More requests than this at one moment are never taken: those of a step and those that wait.
  std::size_t most_requests() const {
    return static_cast<std::size_t>(options_.max_num_seqs) +
           static_cast<std::size_t>(options_.max_queue);
  }
  /// The longest sequence that the KV cache can hold, in tokens.
  std::int64_t kv_cache_tokens() const;

 private:
  struct Served {
    Deployment deployment;
    std::shared_ptr<const GateMask> mask;  // null: all experts
    BlockKey root{};                       // prefix_root(mask)
  };
  struct PendingView {
    EpochView view;
    std::function<void(Epoch, std::vector<WorkerId>)> on_active;
  };
  /// What one sequence's last row gave.
  struct Sample {
    std::size_t part = 0;
    std::size_t logit_row = 0;
    bool finite = true;
    SampledToken token;
  };

  // All of these run on the step loop's thread.
  void loop();
  void take_arrivals();
  void apply_pending_view();
  void activate(const EpochView& view, std::size_t num_lost);
  void end_orphans(const EpochView& view);
  void regain();
  void handle_failure(Sequence& sequence, std::uint8_t failure);
  bool mask_missing(Sequence& sequence);
  void sweep();
  bool step();
  void sample_rows(const StepResult& result);
  void deliver(const StepResult& result);
  void hand_out(Sequence& sequence, const SampledToken& sampled, Clock::time_point now);
  void finish(Sequence& sequence, FinishReason reason, Error error = {});
  void publish_load();

  const Model& model_;
  StepBackend& backend_;
  const EngineOptions options_;
  EngineObserver* const observer_;
  KvCache kv_;
  Scheduler scheduler_;  // step loop only, as are those below
  std::uint64_t step_count_ = 0;
  std::optional<PendingView> switching_;  // the backend's switch is under way
  std::uint64_t gained_ = 0;              // backend_.gained() when the step began
  MicroBatchChoice micro_batches_;
  std::vector<RequestId> cancelled_now_;                        // ascending
  Clock::time_point next_deadline_ = Clock::time_point::max();  // of all sequences, or earlier
  std::span<const Scheduler::Part> parts_;                      // of this step
  std::vector<std::uint8_t> part_failed_;                       // [parts]: a RowFailure
  std::vector<SequenceChunk> chunks_;
  std::vector<Sample> samples_;  // of parts that want a token and did not fail

  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Sequence>> arrivals_;  // guarded by mutex_: not in scheduler_ yet
  std::size_t waiting_ = 0;                          // guarded by mutex_: scheduler_.num_waiting()
  std::size_t seats_;                                // guarded by mutex_: scheduler_.seats()
  std::uint64_t retries_ = 0;                        // guarded by mutex_
  std::uint64_t masked_ = 0;                         // guarded by mutex_
  std::vector<RequestId> cancelled_;                 // guarded by mutex_
  std::optional<PendingView> pending_view_;          // guarded by mutex_
  std::map<std::string, Served> served_;             // guarded by mutex_
  std::map<std::string, std::uint64_t> requests_;    // guarded by mutex_: running and waiting
  std::map<std::string, std::uint64_t> parked_;      // guarded by mutex_: of those, not zero
  Epoch epoch_;                                      // guarded by mutex_
  RequestId next_id_ = 1;                            // guarded by mutex_
  Deadline drain_until_ = Deadline::max();           // guarded by mutex_: max() = not draining
  SchedulerStats scheduler_stats_;                   // guarded by mutex_
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace moiety
