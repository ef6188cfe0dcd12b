#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/result.h"
#include "fabric/lane.h"

namespace moiety::bench {

/// One MoE layer's traffic, without the experts: every token goes to `fan_out` of the workers in
/// turn, as real dispatch messages, and real replies come back.
struct FabricCase {
  std::int32_t tokens = 1;
  std::int32_t hidden_size = 2048;
  std::int32_t top_k = 8;    ///< a multiple of fan_out
  std::int32_t fan_out = 2;  ///< at most the number of workers
};

struct FabricMeasured {
  std::vector<double> layer_us;  ///< of each round, ascending
  std::uint64_t bytes_sent = 0;  ///< payload, by the lane's own count, over all rounds
  std::uint64_t bytes_received = 0;
  std::uint64_t expected_sent = 0;  ///< by the formats' definition
  std::uint64_t expected_received = 0;
};

/// Answers dispatches with rows of zeros, without computing, until a router says that it is over or
/// the deadline passes. `worker` is this end's id.
Result<void> serve_stand_in(fabric::WorkerPort& port, std::uint64_t worker, Deadline deadline);

/// Ends stand-ins.
void dismiss_stand_ins(fabric::RouterLane& lane, std::uint64_t num_workers);

/// Runs layers of the case one after the other over a lane that is connected to workers 0 to
/// `num_workers` - 1 of incarnation 1: build and send all messages, wait for all replies, add them
/// up. The first tenth is not counted. kWorkerLost, kDeadlineExceeded.
Result<FabricMeasured> measure_fabric(fabric::RouterLane& lane,
                                      std::int32_t num_workers,
                                      const FabricCase& what,
                                      std::int32_t rounds);

}  // namespace moiety::bench
