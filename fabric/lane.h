#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/ids.h"
#include "common/result.h"

namespace moiety::fabric {

/// What a message is.
enum class Kind : std::uint8_t {
  kDispatch = 1,  ///< router -> worker: rows and their (expert, weight) pairs
  kReply = 2,     ///< worker -> router: partial sums, or one row per pair
  kError =
      3,  ///< worker -> router: the payload is an ErrorCode's wire name, a newline, and a sentence
};

/// Fixed header of every message on a lane, as it stands on the wire (little endian, no padding).
/// A receiver drops what does not match the step it waits for, so that a late answer of a paused or
/// replaced worker is never combined.
struct Header {
  std::uint32_t magic = 0x3159'4f4d;  // "MOY1"
  Kind kind = Kind::kDispatch;
  std::uint8_t reserved[3] = {};
  std::uint64_t epoch = 0;
  std::uint64_t step = 0;
  std::uint32_t attempt = 0;
  std::uint32_t layer = 0;
  std::uint64_t sender = 0;       ///< router or worker id
  std::uint64_t incarnation = 0;  ///< of the *worker*, in both directions
  /// The worker's own clock, nanoseconds; only differences mean something. Zero in dispatches.
  std::uint64_t received_ns = 0;
  std::uint64_t started_ns = 0;
  std::uint64_t finished_ns = 0;
  std::uint64_t sent_ns = 0;
  /// Whether a reply answers a dispatch: same epoch, step, attempt, layer, incarnation.
  bool answers(const Header& dispatch) const {
    return epoch == dispatch.epoch && step == dispatch.step && attempt == dispatch.attempt &&
           layer == dispatch.layer && incarnation == dispatch.incarnation;
  }
};
static_assert(sizeof(Header) == 80);

/// Something that happened on a lane.
struct Event {
  enum class Type : std::uint8_t {
    kMessage,      ///< header and payload are set
    kConnected,    ///< router side: a connect() succeeded, messages may be sent to the peer
    kPeerLost,     ///< the peer's process died, closed, or was cut off, or a connect() failed
                   ///< (`error` says why); nothing more comes from it
    kTimeout,      ///< the deadline passed
    kInterrupted,  ///< interrupt() was called from another thread
  };
  Type type = Type::kTimeout;
  std::uint64_t peer = 0;  ///< router side: worker id. Worker side: lane number
  Header header;
  std::vector<std::byte> payload;
  Error error;  ///< kPeerLost: why
};

/// Who we are to the other side, checked in the hello.
struct LaneIdentity {
  std::uint64_t id = 0;           ///< router id, or worker id
  std::uint64_t incarnation = 0;  ///< workers only
  std::string token;              ///< the cluster's secret; both sides must have the same one
};

/// A router's end: its connections to all workers of a placement.
/// Confined to one thread (the step loop), except interrupt(). Destruction closes without waiting
/// for peers.
class RouterLane {
 public:
  virtual ~RouterLane() = default;

  /// Begins to connect to a worker's port and to exchange a hello (router id, expected incarnation,
  /// token); returns at once and replaces an earlier connection to that worker. The outcome is one
  /// event of wait(): kConnected, or kPeerLost with error kUnavailable (nobody answered there
  /// before `deadline`), kLeaseLost (another incarnation answers), kResourceExhausted (this process
  /// has no descriptors left for it: that says nothing of the worker), or what the port refused it
  /// for.
  /// The connection progresses inside wait() only.
  virtual void connect(const std::string& address,
                       std::uint64_t worker,
                       std::uint64_t incarnation,
                       Deadline deadline) = 0;
  /// Forgets a worker, also one that is being connected to; its late messages are dropped. No event
  /// follows.
  virtual void disconnect(std::uint64_t worker) = 0;
  virtual bool connected(std::uint64_t worker) const = 0;

  /// Hands a message to the transport and returns at once; the lane keeps the payload until it is
  /// sent. kWorkerLost when the worker is not connected (any more).
  virtual Result<void> send(std::uint64_t worker,
                            const Header& header,
                            std::vector<std::byte> payload) = 0;

  /// The next event, at the latest at the deadline. Spins briefly, then sleeps.
  virtual Event wait(Deadline deadline) = 0;

  /// Makes a wait() that is under way, or the next one, return kInterrupted. Any thread.
  virtual void interrupt() = 0;

  /// Payload bytes sent and received so far (headers not counted).
  virtual std::uint64_t bytes_sent() const = 0;
  virtual std::uint64_t bytes_received() const = 0;
};

/// A worker's end: accepts the lanes of several routers.
/// Confined to one thread, except interrupt().
class WorkerPort {
 public:
  virtual ~WorkerPort() = default;
  /// What routers pass to connect().
  virtual const std::string& address() const = 0;
  /// Changes what hellos are judged by. Before the first wait(): who is let in stays in.
  virtual void set_identity(const LaneIdentity& identity) = 0;
  /// The next event of any lane. `Event::peer` is the lane's number, unique over the port's life.
  virtual Event wait(Deadline deadline) = 0;
  /// Answers on a lane; kUnavailable when that lane is gone (the router died: not the worker's
  /// problem).
  virtual Result<void> send(std::uint64_t lane,
                            const Header& header,
                            std::vector<std::byte> payload) = 0;
  virtual void interrupt() = 0;
};

}  // namespace moiety::fabric
