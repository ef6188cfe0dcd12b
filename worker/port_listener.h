#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "fabric/lane.h"

namespace moiety {

/// A clock reading as it stands in lane headers: nanoseconds of a clock of this process.
std::uint64_t now_ns();

/// Something that came on a lane, and when it came.
struct Arrival {
  fabric::Event event;
  std::uint64_t received_ns = 0;
};

/// Listens to a port while its owner computes, so that hellos are answered, long messages go on
/// arriving, and what arrives gets its true time. Between begin() and end() the port is this
/// object's: the owner does not touch it.
class PortListener {
 public:
  explicit PortListener(fabric::WorkerPort& port);
  ~PortListener();
  PortListener(const PortListener&) = delete;
  PortListener& operator=(const PortListener&) = delete;

  void begin();
  /// Takes the port back; what arrived meanwhile, in order. Interrupts of others are lost: look at
  /// what they announce.
  std::vector<Arrival> end();

 private:
  enum class State { kIdle, kListening, kEnding, kStopped };

  void loop();
  void listen();

  fabric::WorkerPort& port_;
  std::mutex mutex_;
  std::condition_variable changed_;
  State state_ = State::kIdle;     // guarded by mutex_
  std::vector<Arrival> arrivals_;  // of the thread while listening, of the owner otherwise
  std::thread thread_;
};

}  // namespace moiety
