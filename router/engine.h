#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/placement.h"
#include "model/model.h"
#include "model/sampler.h"
#include "router/step_backend.h"

namespace moiety {

struct EngineOptions {
  std::int32_t max_num_seqs = 64;  ///< sequences in one step
  std::int32_t max_num_batched_tokens =
      512;                        ///< tokens in one step: decodes first, then prefill chunks
  std::int32_t max_queue = 1024;  ///< waiting requests; beyond: kResourceExhausted
  std::uint64_t kv_cache_bytes = 512u << 20;
};

struct GenerateRequest {
  std::string deployment;            ///< "" = the full model
  std::vector<std::int32_t> prompt;  ///< at least one token
  SamplingParams sampling;
  std::int32_t max_tokens = 16;
  std::vector<std::int32_t>
      stop_ids;  ///< generation ends at one of these (it is reported, not part of the text)
  Deadline deadline = Deadline::max();
};

enum class FinishReason : std::uint8_t { kStop, kLength, kCancelled, kError };
std::string_view finish_reason_name(FinishReason reason);

/// How a request ended.
struct Finish {
  FinishReason reason = FinishReason::kStop;
  Error error;  ///< kError only
  std::int32_t prompt_tokens = 0;
  std::int32_t completion_tokens = 0;  ///< the stop token included
  /// Mean over MoE layers and all tokens that went through the model; absent for physically pruned
  /// checkpoints.
  std::optional<double> masked_mass;
};

/// What a request hears, on the step loop's thread; must not block. After on_finish nothing more
/// comes.
struct RequestCallbacks {
  std::function<void(std::int32_t token)> on_token;
  std::function<void(const Finish&)> on_finish;
};

/// What the step loop reports; called on its thread after each step or request. Must not block.
struct EngineObserver {
  virtual ~EngineObserver() = default;
  virtual void on_step(double seconds, std::size_t rows) = 0;
  /// topk_ids of one step: per layer [rows, top_k].
  virtual void on_experts(const std::vector<std::vector<std::int32_t>>& topk_ids) = 0;
  virtual void on_backend(const BackendStats& stats) = 0;
  virtual void on_request_end(const std::string& deployment, const Finish& finish) = 0;
};

/// The step loop: continuous batching over a model and a backend, on a thread of its own.
///
/// Every step takes one token of each running sequence and fills the token budget with prompt
/// chunks of new ones, first come first served. A sequence is admitted when KV blocks for its
/// prompt and all of max_tokens are free, so nothing that runs is ever pushed out. A batch may mix
/// deployments: each row has its own mask. The destructor ends all requests with
/// kUnavailable and joins.
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
  /// max_tokens beyond the context), kUnavailable (no epoch yet), kResourceExhausted (queue full).
  Result<RequestId> submit(GenerateRequest request, RequestCallbacks callbacks);

  /// Ends a request with kCancelled at the next step boundary; unknown ids are ignored. Any thread.
  void cancel(RequestId id);

  /// Refuses new requests from now on (kUnavailable), and ends those that are not done at
  /// `deadline` in the same way. Any thread.
  void drain(Deadline deadline);

  /// Hands the loop a new epoch; `on_active` is called on its thread when steps use it, with the
  /// workers that could not be reached. A newer view replaces one that was not applied yet. Any
  /// thread.
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
    std::uint64_t running = 0, waiting = 0;
    std::map<std::string, std::uint64_t> per_deployment;  ///< running and waiting
  };
  Load load() const;
  const Model& model() const { return model_; }

 private:
  struct Served {
    Deployment deployment;
    std::shared_ptr<const GateMask> mask;  // null: all experts
  };
  struct Sequence {
    RequestId id = 0;
    GenerateRequest request;
    RequestCallbacks callbacks;
    std::shared_ptr<const GateMask> mask;
    std::vector<std::int32_t> tokens;  // prompt, then generated
    std::vector<std::int32_t> blocks;
    std::int32_t computed = 0;  // tokens whose k and v are in the cache
    double masked_mass = 0;     // summed over computed tokens
    bool cancelled = false;
    std::int32_t generated() const {
      return static_cast<std::int32_t>(tokens.size() - request.prompt.size());
    }
  };
  struct PendingView {
    EpochView view;
    std::function<void(Epoch, std::vector<WorkerId>)> on_active;
  };

  void loop();
  void apply_pending_view();
  void admit();
  void sweep();
  bool step();
  void finish(Sequence& sequence, FinishReason reason, Error error = {});

  const Model& model_;
  StepBackend& backend_;
  const EngineOptions options_;
  EngineObserver* const observer_;
  KvCache kv_;
  std::list<Sequence> running_;  // step loop only
  std::uint64_t step_count_ = 0;

  mutable std::mutex mutex_;
  std::deque<Sequence> waiting_;                   // guarded by mutex_
  std::vector<RequestId> cancelled_;               // guarded by mutex_
  std::optional<PendingView> pending_view_;        // guarded by mutex_
  std::map<std::string, Served> served_;           // guarded by mutex_
  std::map<std::string, std::uint64_t> requests_;  // guarded by mutex_: running and waiting
  Epoch epoch_;                                    // guarded by mutex_
  RequestId next_id_ = 1;                          // guarded by mutex_
  Deadline drain_until_ = Deadline::max();         // guarded by mutex_: max() = not draining
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace moiety
