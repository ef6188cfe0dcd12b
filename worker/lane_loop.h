#pragma once

#include <atomic>
#include <cstdint>

#include "experts/run.h"
#include "experts/store.h"
#include "fabric/lane.h"

namespace moiety {

/// Serves the lanes of all routers: dispatch in, rows out, in the order in which messages arrive.
/// run() belongs to one thread; stop() and the counters to any.
class LaneLoop {
 public:
  /// All outlive the loop. `incarnation` is this worker's and `hidden_size` the model's: dispatches
  /// for others are refused.
  LaneLoop(fabric::WorkerPort& port,
           const ExpertStore& store,
           ExpertRunner& runner,
           std::int32_t hidden_size,
           std::uint64_t worker_id,
           std::uint64_t incarnation);

  void run();
  void stop();

  std::uint64_t dispatches() const { return dispatches_; }
  /// (token, expert) pairs computed.
  std::uint64_t rows_processed() const { return rows_processed_; }

 private:
  void answer(const fabric::Event& event);
  /// The payload of the reply to one dispatch.
  Result<std::vector<std::byte>> compute(const fabric::Event& event);

  fabric::WorkerPort& port_;
  const ExpertStore& store_;
  ExpertRunner& runner_;
  const std::int32_t hidden_size_;
  const std::uint64_t worker_id_;
  const std::uint64_t incarnation_;
  std::vector<float> rows_;
  std::atomic<bool> stop_{false};
  std::atomic<std::uint64_t> dispatches_{0};
  std::atomic<std::uint64_t> rows_processed_{0};
};

}  // namespace moiety
