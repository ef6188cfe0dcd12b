#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "common/descriptors.h"
#include "fabric/protocol.h"
#include "fabric/ucx/engine.h"
#include "fabric/ucx/ucx_lane.h"

namespace moiety::fabric {
namespace {

/// More than UCX opens for one connection.
constexpr std::size_t kDescriptorsToDial = 8;

Error out_of_descriptors() {
  return fail(ErrorCode::kResourceExhausted,
              fmt::format("this process has no file descriptors left to connect with (it may have "
                          "{}); raise its hard limit (ulimit -n)",
                          descriptor_limit()));
}

class UcxRouterLane final : public RouterLane {
 public:
  UcxRouterLane(LaneIdentity identity, std::unique_ptr<ucx::Engine> engine)
      : identity_(std::move(identity)), engine_(std::move(engine)) {}

  void connect(const std::string& address,
               std::uint64_t worker,
               std::uint64_t incarnation,
               Deadline deadline) override {
    disconnect(worker);
    // UCX reports that as if the peer had failed.
    if (!descriptors_left(kDescriptorsToDial)) {
      engine_->add(lost(worker, address, out_of_descriptors()));
      return;
    }
    auto dialled = engine_->dial(address, worker);
    if (!dialled) {
      engine_->add(lost(worker, address, std::move(dialled).error()));
      return;
    }
    greetings_[worker] = {*dialled, address, incarnation, deadline};
    engine_->send_hello(*dialled,
                        encode_hello({identity_.id, worker, incarnation, identity_.token}));
  }

  void disconnect(std::uint64_t worker) override {
    greetings_.erase(worker);
    engine_->forget(worker);
  }

  bool connected(std::uint64_t worker) const override {
    const auto connection = engine_->find(worker);
    return connection != nullptr && connection->state == ucx::Connection::State::kOpen;
  }

  Result<void> send(std::uint64_t worker,
                    const Header& header,
                    std::vector<std::byte> payload) override {
    MOIETY_TRY(check_payload_size(payload.size()));
    if (!connected(worker) || !engine_->send(engine_->find(worker), header, std::move(payload))) {
      return fail(ErrorCode::kWorkerLost, fmt::format("worker {} is not connected", worker));
    }
    return {};
  }

  Event wait(Deadline deadline) override {
    for (;;) {
      Deadline until = deadline;
      for (const auto& [worker, greeting] : greetings_) until = std::min(until, greeting.deadline);
      Event event = engine_->wait(until, [this] { check_answers(); });
      if (event.type == Event::Type::kTimeout && expire_greetings()) continue;
      if (event.type == Event::Type::kTimeout && Clock::now() < deadline) continue;
      if (event.type == Event::Type::kPeerLost) {
        if (const auto it = greetings_.find(event.peer); it != greetings_.end()) {
          event = lost(
              event.peer, it->second.address,
              descriptors_left(kDescriptorsToDial) ? std::move(event.error) : out_of_descriptors());
          greetings_.erase(it);
        }
      }
      return event;
    }
  }
  void interrupt() override { engine_->interrupt(); }
  std::uint64_t bytes_sent() const override { return engine_->bytes_sent(); }
  std::uint64_t bytes_received() const override { return engine_->bytes_received(); }

 private:
  /// A connection whose hello is not answered yet.
  struct Greeting {
    std::shared_ptr<ucx::Connection> connection;
    std::string address;
    std::uint64_t incarnation = 0;
    Deadline deadline;
  };

  static Event lost(std::uint64_t worker, const std::string& address, Error why) {
    Event event;
    event.type = Event::Type::kPeerLost;
    event.peer = worker;
    event.error = with_context(fmt::format("worker {} at {}", worker, address), std::move(why));
    return event;
  }

  void check_answers() {
    for (const auto& connection : engine_->take_hellos()) {
      const std::uint64_t worker = connection->peer;
      const auto it = greetings_.find(worker);
      if (it == greetings_.end() || it->second.connection != connection) continue;
      auto verdict = check_hello_answer(connection->hello, worker, it->second.incarnation);
      if (verdict && connection->broken) continue;  // accepted and lost: the loss is the outcome
      const Greeting greeting = std::move(it->second);
      greetings_.erase(it);
      if (!verdict) {
        engine_->forget(worker);
        engine_->add(lost(worker, greeting.address, std::move(verdict).error()));
        continue;
      }
      connection->state = ucx::Connection::State::kOpen;
      Event event;
      event.type = Event::Type::kConnected;
      event.peer = worker;
      engine_->add(std::move(event));
    }
  }

  /// Whether any connect() ended because its time is over.
  bool expire_greetings() {
    const auto now = Clock::now();
    bool any = false;
    for (auto it = greetings_.begin(); it != greetings_.end();) {
      if (now < it->second.deadline) {
        ++it;
        continue;
      }
      engine_->forget(it->first);
      engine_->add(lost(it->first, it->second.address,
                        fail(ErrorCode::kUnavailable, "nobody answered before the deadline")));
      it = greetings_.erase(it);
      any = true;
    }
    return any;
  }

  const LaneIdentity identity_;
  const std::unique_ptr<ucx::Engine> engine_;
  std::map<std::uint64_t, Greeting> greetings_;  ///< by worker
};

}  // namespace

Result<std::unique_ptr<RouterLane>> open_ucx_router_lane(const LaneIdentity& identity) {
  MOIETY_ASSIGN(auto engine, ucx::Engine::create());
  return std::make_unique<UcxRouterLane>(identity, std::move(engine));
}

}  // namespace moiety::fabric
