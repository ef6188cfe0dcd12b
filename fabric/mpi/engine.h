#pragma once

#include <mpi.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"
#include "fabric/lane.h"
#include "fabric/mpi/doorbell.h"
#include "fabric/mpi/mpi_lane.h"
#include "fabric/usual_wait.h"

namespace moiety::fabric::mpi {

/// Tags in MPI_COMM_WORLD. Every message but kPayload begins with the number of its connection.
enum Tag : int {
  kHello = 1,    ///< router -> worker: connection u64, then the bytes of a hello
  kAnswer = 2,   ///< worker -> router: connection u64, then the port's answer
  kMessage = 3,  ///< both ways: a WireHeader, then the payload if it is short
  kPayload = 4,  ///< both ways: the payload of the kMessage before it, if it is long
  kBye = 5,      ///< both ways: connection u64; it is closed
};

/// Payloads up to this size travel behind their header, longer ones as a message of their own.
inline constexpr std::uint64_t kInlineBytes = 16 << 10;

struct WireHeader {
  std::uint64_t connection = 0;
  std::uint64_t sequence = 0;  ///< counts the messages of one direction of a connection from 0
  std::uint64_t payload_bytes = 0;
  Header header;
};
static_assert(sizeof(WireHeader) == 104);

/// The connection of this process with another rank; there is at most one per rank at a time.
struct Connection {
  int rank = 0;
  std::uint64_t number = 0;  ///< chosen by the router; differs between connections
  std::uint64_t peer = 0;    ///< worker id at a router, lane number at a port
  bool dialled = false;
  bool open = false;        ///< the hello was accepted
  bool line_ended = false;  ///< the doorbell told that the peer is gone
  Doorbell::Line line = Doorbell::kNoLine;
  std::uint64_t next_to_send = 0;
  std::uint64_t next_to_arrive = 0;
};

/// What MPI ports and router lanes share: messages, progress, and waiting.
///
/// Only non-blocking calls: MPI_Isend, MPI_Improbe with MPI_Imrecv, MPI_Test. Messages of a rank
/// are handled in the order in which MPI matched them, which is the order in which they were sent;
/// those of connections that are closed are dropped. Requests whose peer died never complete: their
/// buffers are kept for the life of the process, and nothing waits for them.
class Engine {
 public:
  /// Hands over a kHello or kAnswer.
  using Greeter =
      std::function<void(int rank, std::uint64_t connection, std::span<const std::byte>)>;

  static Result<std::unique_ptr<Engine>> create(bool listen, Greeter on_greeting);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const MpiWorld& world() const { return world_; }

  /// Makes a connection; at a router it also dials the doorbell. One with the same rank or the same
  /// peer is forgotten first. `number` 0: a new one.
  std::shared_ptr<Connection> open(int rank, std::uint64_t peer, std::uint64_t number, bool dial);
  /// Closes a peer's connection, if there is one: tells the other side, drops what has arrived from
  /// it, and no event follows.
  void forget(std::uint64_t peer);
  /// Ends a connection with a kPeerLost.
  void lose(const std::shared_ptr<Connection>& connection, Error why);
  std::shared_ptr<Connection> find(std::uint64_t peer) const;
  std::shared_ptr<Connection> find_rank(int rank) const;

  void greet(int rank, Tag tag, std::uint64_t connection, std::span<const std::byte> bytes);
  /// False when MPI refused.
  bool send(const std::shared_ptr<Connection>& connection,
            const Header& header,
            std::vector<std::byte> payload);

  void add(Event event) { events_.push_back(std::move(event)); }
  /// The next event, at the latest at the deadline.
  Event wait(Deadline deadline);
  void interrupt();

  std::uint64_t bytes_sent() const { return bytes_sent_; }
  std::uint64_t bytes_received() const { return bytes_received_; }

 private:
  struct Outgoing {
    std::vector<std::byte> bytes;
    MPI_Request request = MPI_REQUEST_NULL;
    int rank = 0;
  };
  struct Incoming {
    int tag = 0;
    std::vector<std::byte> bytes;
    MPI_Request request = MPI_REQUEST_NULL;
    bool complete = false;
  };
  /// What arrives from one rank.
  struct Source {
    std::list<Incoming> queue;          ///< as matched
    std::optional<WireHeader> waiting;  ///< the header whose payload comes next
  };

  Engine(MpiWorld world, std::unique_ptr<Doorbell> bell, Greeter on_greeting)
      : world_(world), bell_(std::move(bell)), on_greeting_(std::move(on_greeting)) {}

  bool progress();
  bool match_arrivals();
  bool complete_arrivals();
  bool complete_sends();
  void handle(int rank, Source& source, Incoming& message);
  void take_message(int rank, Source& source, std::vector<std::byte>& bytes);
  void deliver(int rank, const WireHeader& wire, std::vector<std::byte> payload);
  void refuse(int rank, std::uint64_t connection, const std::string& flaw);
  bool isend(int rank, Tag tag, std::vector<std::byte> bytes);
  void ring(int rank);
  /// Takes what the doorbell has to tell, or sleeps until it does.
  void listen(std::chrono::nanoseconds limit);
  /// From or to a rank that we are connected with.
  bool is_message_under_way() const;
  std::chrono::nanoseconds sleep_length(Clock::time_point now) const;
  void lose_ended();
  void remove(const std::shared_ptr<Connection>& connection);

  const MpiWorld world_;
  const std::unique_ptr<Doorbell> bell_;
  const Greeter on_greeting_;
  std::atomic<bool> interrupted_{false};

  std::map<int, std::shared_ptr<Connection>> by_rank_;
  std::map<std::uint64_t, std::shared_ptr<Connection>> by_peer_;
  std::map<std::uint64_t, Doorbell::Line> lines_;  ///< by connection, dialled to us, not taken yet
  std::map<int, Source> sources_;
  std::list<Outgoing> outgoing_;
  std::deque<Event> events_;
  Clock::time_point last_moved_ = Clock::now();
  Clock::time_point last_listened_ = Clock::now();
  int rounds_since_moved_ = 0;
  UsualWait usual_wait_;
  std::uint64_t bytes_sent_ = 0;
  std::uint64_t bytes_received_ = 0;
};

}  // namespace moiety::fabric::mpi
