#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/ids.h"
#include "fabric/lane.h"

// What tests of lanes share: deadlines, payloads that tell a wrong message, and a worker that
// echoes.
namespace moiety::fabric {

using std::chrono::milliseconds;

/// Longer than anything takes that works; only a broken test waits for it.
inline Deadline generous() { return Clock::now() + std::chrono::seconds(20); }
inline Deadline in(milliseconds duration) { return Clock::now() + duration; }

inline constexpr char kToken[] = "a shared secret";

inline LaneIdentity router_identity(std::uint64_t id) { return {id, 0, kToken}; }
inline LaneIdentity worker_identity(std::uint64_t id, std::uint64_t incarnation = 1) {
  return {id, incarnation, kToken};
}

/// Payload bytes as a function of who sent them, the how-manieth message it is, and the position,
/// so that bytes of another message, or at another place, cannot pass.
inline std::vector<std::byte> payload_of(std::uint64_t source,
                                         std::uint64_t sequence,
                                         std::size_t size) {
  std::vector<std::byte> payload(size);
  std::uint64_t state = source * 0x9e37'79b9'7f4a'7c15 + sequence * 0xbf58'476d'1ce4'e5b9 + 1;
  for (std::size_t slot = 0; slot < size; ++slot) {
    state = state * 6'364'136'223'846'793'005 + 1'442'695'040'888'963'407;
    payload[slot] = static_cast<std::byte>(state >> 56);
  }
  return payload;
}

inline Header dispatch_header(std::uint64_t router,
                              std::uint64_t step,
                              std::uint64_t incarnation = 1) {
  Header header;
  header.epoch = 7;
  header.step = step;
  header.attempt = 2;
  header.layer = static_cast<std::uint32_t>(step % 16);
  header.sender = router;
  header.incarnation = incarnation;
  return header;
}

/// connect() and its outcome. kInternal when wait() has something else first.
inline Result<void> connect_now(RouterLane& lane,
                                const std::string& address,
                                std::uint64_t worker,
                                std::uint64_t incarnation,
                                Deadline deadline) {
  lane.connect(address, worker, incarnation, deadline);
  const Event event = lane.wait(generous());
  if (event.peer != worker) return fail(ErrorCode::kInternal, "an event of another worker");
  if (event.type == Event::Type::kConnected) return {};
  if (event.type == Event::Type::kPeerLost) return event.error;
  return fail(ErrorCode::kInternal, "neither connected nor lost");
}

/// A worker in a thread of its own that sends every payload back. The port is used by that thread
/// only, except for address() and interrupt(). Ends with the object.
class EchoWorker {
 public:
  EchoWorker(std::unique_ptr<WorkerPort> port, std::uint64_t id)
      : port_(std::move(port)), address_(port_->address()), thread_([this, id] { serve(id); }) {}
  ~EchoWorker() { stop(); }

  const std::string& address() const { return address_; }
  /// Ends the thread; then the port may be looked at.
  void stop() {
    if (!thread_.joinable()) return;
    port_->interrupt();
    thread_.join();
  }
  /// Ends the thread and closes the port, as an orderly exit would.
  void close() {
    stop();
    port_.reset();
  }
  /// After stop(): lanes whose routers went away, one entry per event.
  const std::vector<std::uint64_t>& lost_lanes() const { return lost_lanes_; }

 private:
  void serve(std::uint64_t id) {
    for (;;) {
      Event event = port_->wait(generous());
      if (event.type == Event::Type::kInterrupted || event.type == Event::Type::kTimeout) return;
      if (event.type == Event::Type::kPeerLost) {
        lost_lanes_.push_back(event.peer);
        continue;
      }
      Header header = event.header;
      header.kind = Kind::kReply;
      header.sender = id;
      header.received_ns = 11;
      header.started_ns = 22;
      header.finished_ns = 33;
      header.sent_ns = 44;
      // A lane may be gone meanwhile; that is the router's business.
      [[maybe_unused]] const bool sent =
          port_->send(event.peer, header, std::move(event.payload)).has_value();
    }
  }

  std::unique_ptr<WorkerPort> port_;
  const std::string address_;
  std::vector<std::uint64_t> lost_lanes_;
  std::thread thread_;
};

}  // namespace moiety::fabric
