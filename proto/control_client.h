#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>

#include "proto/channel.h"

namespace moiety::proto {

struct ControlClientOptions {
  std::string address;  ///< the coordinator's "host:port"
  Hello hello;
  /// How long the process goes on without a coordinator before on_orphaned; 0 = for ever.
  std::chrono::seconds orphan_timeout{60};
};

struct ControlClientCallbacks {
  std::function<void(ControlMessage)> on_message;  ///< on the channel's thread; must not block
  std::function<ControlMessage()> make_heartbeat;  ///< on the client's thread, once per interval
  /// Completes the Hello of each connection (what is held now, the epoch in use); may be empty. On
  /// the client's thread.
  std::function<void(Hello&)> complete_hello = {};
  /// The coordinator let us in; before any message of this connection. May be empty. On the
  /// client's thread.
  std::function<void(const Welcome&)> on_welcome = {};
  /// The coordinator refused us, or was gone for longer than orphan_timeout: finish. Called once,
  /// on the client's thread.
  std::function<void(const Error& why)> on_orphaned;
};

/// A process's standing connection to the coordinator: connects, sends heartbeats, and connects
/// again (with back-off) when the connection ends. Heartbeats have a thread of their own, so that a
/// long computation does not look like a death.
class ControlClient {
 public:
  ControlClient(ControlClientOptions options, ControlClientCallbacks callbacks);
  ~ControlClient();  ///< closes and joins, at once even while connecting
  ControlClient(const ControlClient&) = delete;
  ControlClient& operator=(const ControlClient&) = delete;

  /// Queues a message; any thread. kUnavailable while there is no connection.
  Result<void> send(const ControlMessage& message);

 private:
  void loop();
  /// One connection, until it ends or we stop.
  Error converse();

  const ControlClientOptions options_;
  const ControlClientCallbacks callbacks_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::unique_ptr<Channel> channel_;  // guarded by mutex_
  bool closed_ = false;               // guarded by mutex_: the channel ended
  bool stop_ = false;                 // guarded by mutex_
  std::stop_source connecting_;       // stopped with stop_: ends a connect that is under way
  Clock::time_point last_alive_;      // client thread only
  std::thread thread_;
};

}  // namespace moiety::proto
