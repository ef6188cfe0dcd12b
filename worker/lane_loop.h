#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <optional>

#include "experts/run.h"
#include "experts/store.h"
#include "fabric/lane.h"
#include "worker/port_listener.h"

namespace moiety {

/// Serves the lanes of all routers: dispatch in, rows out.
///
/// Takes everything that waits, and runs the dispatches of one layer as one batch, whichever
/// routers sent them; the bits of a row do not depend on what is beside it. Layers take turns in
/// the order of their oldest dispatch, and every dispatch gets one reply, rows or an error, under
/// its own header. A dispatch that cannot be computed does not disturb the others of its batch.
///
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

  /// Before run(), for an id that the coordinator chose.
  void set_worker_id(std::uint64_t worker_id) { worker_id_ = worker_id; }
  void run();
  void stop();

  /// Since the start. A dispatch's queue time is from its arrival to the start of its batch.
  struct Counters {
    std::uint64_t dispatches = 0;  ///< answered, with rows or an error
    std::uint64_t pairs = 0;       ///< (token, expert) pairs computed
    std::uint64_t batches = 0;     ///< runs of the expert kernels
    std::uint64_t merged = 0;      ///< dispatches that shared a batch
    std::uint64_t refused = 0;     ///< dispatches answered with an error
    std::uint64_t queue_ns = 0;    ///< sum over dispatches
    std::uint64_t compute_ns = 0;  ///< sum over batches
  };
  Counters counters() const;

 private:
  /// A dispatch that was checked and waits for its batch.
  struct Waiting {
    std::uint64_t lane = 0;
    fabric::Header header;  ///< as it came, with received_ns
    Dispatch dispatch;
  };

  void collect();
  void take(fabric::Event event, std::uint64_t received_ns);
  Result<Dispatch> check(const fabric::Event& event) const;
  std::deque<Waiting> next_batch();
  void serve(std::deque<Waiting> batch);
  Result<void> compute(std::int32_t layer, const Dispatch& dispatch);
  void reply(const Waiting& waiting, std::span<const float> rows);
  void refuse(std::uint64_t lane, const fabric::Header& header, const Error& why);
  void send(std::uint64_t lane, fabric::Header header, std::vector<std::byte> payload);

  fabric::WorkerPort& port_;
  const ExpertStore& store_;
  ExpertRunner& runner_;
  const std::int32_t hidden_size_;
  std::uint64_t worker_id_;
  const std::uint64_t incarnation_;
  PortListener listener_;
  std::deque<Waiting> waiting_;  // by arrival
  std::vector<float> rows_;      // of the batch under way
  double ns_per_pair_ = 0;       // of late batches
  std::atomic<bool> stop_{false};
  std::atomic<std::uint64_t> dispatches_{0}, pairs_{0}, batches_{0}, merged_{0}, refused_{0},
      queue_ns_{0}, compute_ns_{0};
};

}  // namespace moiety
