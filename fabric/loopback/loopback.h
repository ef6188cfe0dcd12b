#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "fabric/lane.h"

namespace moiety::fabric {

/// Which way a message of a (router, worker) pair travels.
enum class Direction : std::uint8_t { kToWorker = 0, kToRouter = 1 };

/// Ports and lanes of one process, without a transport, and with faults on demand.
///
/// Every port and lane is confined to one thread, as with the real backends; the network itself may
/// be used from any thread. Ports and lanes share its state and may outlive it. As over a real
/// transport, a hello is answered by the port's thread in wait(): a port that nobody waits on does
/// not answer.
///
/// Faults belong to a (router, worker) pair of ids, so that they hold over reconnects and may be
/// set before there is a connection. Hellos are subject to delay and partition only. Order per
/// direction is kept whatever the delays. Whether a message is dropped depends only on the seed,
/// the pair, the direction, and how many messages went that way before, not on how threads
/// interleave.
class LoopbackNetwork {
 public:
  explicit LoopbackNetwork(std::uint64_t seed = 1);
  ~LoopbackNetwork();

  /// Opens a port under a new address, "loop:1", "loop:2", ...
  std::unique_ptr<WorkerPort> make_port(const LaneIdentity& identity);
  std::unique_ptr<RouterLane> make_router_lane(const LaneIdentity& identity);

  /// Every later message of the pair, in both directions, arrives this much later.
  void set_delay(std::uint64_t router, std::uint64_t worker, std::chrono::nanoseconds delay);
  /// The next `count` messages vanish.
  void drop_next(std::uint64_t router,
                 std::uint64_t worker,
                 Direction direction,
                 std::uint64_t count);
  /// Each later message vanishes with this probability in [0, 1].
  void set_drop_probability(std::uint64_t router,
                            std::uint64_t worker,
                            Direction direction,
                            double probability);
  /// While `on`, whatever the pair sends vanishes, hellos too, and neither side learns that the
  /// other one died or closed; that news arrives when the partition ends. What was on its way
  /// before still arrives.
  void set_partition(std::uint64_t router, std::uint64_t worker, bool on);
  /// Delivers once more the message that was sent `age` messages before the last one (0: the last
  /// one itself), over the pair's present connection. False if there is no connection or no such
  /// message: the last 16 are remembered.
  bool replay(std::uint64_t router, std::uint64_t worker, Direction direction, std::uint64_t age);
  /// Kills the ports of a worker as SIGKILL would: routers get kPeerLost, connects fail. The port's
  /// own wait() sees nothing but timeouts and interrupts from then on. A restarted worker is a new
  /// port with a new incarnation.
  void kill(std::uint64_t worker);
  /// Ends the lanes of a router as SIGKILL would, whatever it is in the midst of: workers learn
  /// that it is gone, and nothing that it still says arrives. What is left of it here (it runs
  /// until its lane is destroyed) gets kPeerLost. A restarted router is a new lane; it gets no
  /// replay of what the former one said or heard.
  void kill_router(std::uint64_t router);

  struct State;

 private:
  std::shared_ptr<State> state_;
};

}  // namespace moiety::fabric
