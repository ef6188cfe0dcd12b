#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "fabric/lane.h"
#include "fabric/loopback/loopback.h"

namespace moiety::fabric::loopback {

struct Connection;

/// Something on its way to a port or a lane.
struct Item {
  enum class Type : std::uint8_t { kHello, kAnswer, kMessage, kLost };
  Type type = Type::kMessage;
  std::shared_ptr<Connection> connection;
  Header header;
  std::vector<std::byte> bytes;
};

/// What is on its way to one port or lane, by the time it is due; equal times keep their order.
struct Mailbox {
  std::multimap<Clock::time_point, Item> items;
  std::condition_variable changed;  ///< with State::mutex
  bool interrupted = false;
};

/// One direction's faults of a (router, worker) pair.
struct Way {
  std::uint64_t drop_next = 0;
  double drop_probability = 0;
  std::mt19937_64 random;
  std::deque<std::pair<Header, std::vector<std::byte>>> history;  ///< newest last
};

struct Pair {
  std::chrono::nanoseconds delay{0};
  bool partitioned = false;
  std::array<Way, 2> ways;  ///< by Direction
};

/// A lane between a router and a port, from connect() until both sides have closed it.
/// Indices are Direction: [kToWorker] is what concerns the port, [kToRouter] the router.
struct Connection {
  std::uint64_t router = 0;
  std::uint64_t worker = 0;
  std::uint64_t lane = 0;  ///< the port's number of it
  bool greeted = false;    ///< the port accepted the hello
  std::array<std::shared_ptr<Mailbox>, 2> mailbox;
  std::array<bool, 2> open = {true, true};
  std::array<bool, 2> loss_owed = {false, false};  ///< kept back by a partition
  std::array<Clock::time_point, 2> last_due = {};
};

struct Port {
  LaneIdentity identity;
  std::string address;
  bool alive = true;
  std::shared_ptr<Mailbox> mailbox = std::make_shared<Mailbox>();
  std::map<std::uint64_t, std::shared_ptr<Connection>>
      lanes;  ///< greeted or greeting, by lane number
};

std::unique_ptr<WorkerPort> open_port(std::shared_ptr<LoopbackNetwork::State> state,
                                      const LaneIdentity& identity);
std::unique_ptr<RouterLane> open_lane(std::shared_ptr<LoopbackNetwork::State> state,
                                      const LaneIdentity& identity);

}  // namespace moiety::fabric::loopback

namespace moiety::fabric {

/// Everything of one network. All members are guarded by `mutex`; every function expects it to be
/// held.
struct LoopbackNetwork::State {
  explicit State(std::uint64_t network_seed) : seed(network_seed) {}

  loopback::Pair& pair(std::uint64_t router, std::uint64_t worker);
  /// Sends a message, applying the pair's faults.
  void send(const std::shared_ptr<loopback::Connection>& connection,
            Direction direction,
            const Header& header,
            std::vector<std::byte> payload);
  /// Puts an item into a mailbox behind the pair's delay and behind what is on its way already.
  void post(Direction direction, loopback::Item item);
  /// Closes one side: what is on its way to it is dropped, and the other side is told.
  void close(const std::shared_ptr<loopback::Connection>& connection, Direction side);
  /// Ends all lanes of a port as its process's death would.
  void kill(loopback::Port& port);

  std::mutex mutex;
  const std::uint64_t seed;
  std::uint64_t ports_opened = 0;
  std::uint64_t lanes_opened = 0;
  std::map<std::string, loopback::Port*> ports;  ///< by address; ports remove themselves
  std::vector<std::weak_ptr<loopback::Connection>> connections;
  std::map<std::pair<std::uint64_t, std::uint64_t>, loopback::Pair> pairs;
};

}  // namespace moiety::fabric
