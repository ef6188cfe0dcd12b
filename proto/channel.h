#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <string_view>

#include "common/ids.h"
#include "common/result.h"
#include "proto/control.h"

/// Control messages over TCP. A frame is its payload's length (4 bytes, little-endian) and the
/// payload: one protobuf `Control`. A frame that is too long or does not decode closes the
/// connection, and so does a client that says anything but Hello before it was sent Welcome.
namespace moiety::proto {

/// The longest payload of a frame before Welcome was sent; afterwards kMaxMessageBytes.
inline constexpr std::size_t kMaxHelloBytes = std::size_t{256} << 10;

struct ChannelOptions {
  std::chrono::milliseconds connect_timeout{5000};  ///< for connecting, Hello and Welcome together
  std::size_t max_queued_bytes = std::size_t{128} << 20;  ///< unsent; beyond: send() fails
  std::stop_token stop = {};                              ///< ends connect() early: kCancelled
};

struct ChannelCallbacks {
  std::function<void(ControlMessage)> on_message;
  /// Once, when the connection ends for a reason other than our own close(): the peer closed
  /// (kUnavailable), or sent what does not decode (kDataLoss).
  std::function<void(Error)> on_closed;
};

/// A client's connection to the coordinator. Connecting again after it ends is the caller's policy:
/// make a new Channel.
///
/// Callbacks run one at a time on the channel's own thread and must not block; they may call send()
/// and close() but must not destroy the channel. After the destructor no callback runs.
class Channel {
 public:
  /// Connects to "host:port", sends `hello` and waits for Welcome. Blocks until `connect_timeout`.
  /// kUnavailable (nobody listens; closed; no thread or memory now), kDeadlineExceeded, kCancelled
  /// (options.stop), or the error of the peer's Refuse.
  static Result<std::unique_ptr<Channel>> connect(const std::string& address,
                                                  const Hello& hello,
                                                  const ChannelOptions& options = {});
  /// Closes (what is queued is sent for at most a second) and joins the thread.
  virtual ~Channel() = default;

  /// The answer to our Hello.
  virtual const Welcome& welcome() const = 0;
  /// Begins to deliver what the peer sends; nothing is lost before. Call once.
  virtual void start(ChannelCallbacks callbacks) = 0;
  /// Queues a message; never blocks; any thread. Messages leave in the order of the calls.
  /// kUnavailable: closed. kResourceExhausted: the queue is full, the message was not taken.
  /// kInvalidArgument: the message breaks a limit of convert.h.
  virtual Result<void> send(const ControlMessage& message) = 0;
  /// Sends what is queued (for at most a second), then closes. on_closed is not called. Any thread;
  /// returns at once.
  virtual void close() = 0;
};

/// Names one accepted connection; never used again for another.
using ConnectionId = Id<struct ConnectionTag, std::uint64_t>;

struct ChannelServerOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;                                 ///< 0 picks a free one
  std::chrono::milliseconds hello_timeout{5000};          ///< from accept to Hello; then closed
  std::size_t max_connections = 4096;                     ///< beyond: closed at once
  std::size_t max_queued_bytes = std::size_t{128} << 20;  ///< unsent, per connection
};

/// All callbacks run one at a time on the server's own thread and must not block; they may call
/// send() and close() but must not destroy the server.
struct ChannelServerCallbacks {
  /// A client of our protocol version introduced itself. Answer with send(Welcome), or send(Refuse)
  /// and close(); that may happen later and on another thread.
  std::function<void(ConnectionId, Hello, std::string remote_address)> on_hello;
  std::function<void(ConnectionId, ControlMessage)> on_message;
  /// Exactly once after each on_hello, whoever closed (kCancelled: our own close()); not when the
  /// server itself is destroyed.
  std::function<void(ConnectionId, Error)> on_closed;
};

/// The coordinator's end. Clients of another protocol version are refused without a callback.
class ChannelServer {
 public:
  /// Binds and listens. kUnavailable when the address is taken (the message names it).
  static Result<std::unique_ptr<ChannelServer>> listen(const ChannelServerOptions& options);
  /// Closes everything (what is queued is sent for at most a second) and joins the thread.
  virtual ~ChannelServer() = default;

  virtual std::uint16_t port() const = 0;
  /// Begins to accept. Call once.
  virtual void start(ChannelServerCallbacks callbacks) = 0;
  /// Queues a message; never blocks; any thread. Errors as in Channel::send; kUnavailable also for
  /// a connection that has ended. Sending Welcome lets the client in: from then on it may say more.
  virtual Result<void> send(ConnectionId connection, const ControlMessage& message) = 0;
  /// Sends what is queued (for at most a second), then closes. Any thread; returns at once.
  virtual void close(ConnectionId connection) = 0;
};

}  // namespace moiety::proto
