#include <fmt/format.h>

#include <deque>
#include <map>
#include <optional>
#include <unordered_map>
#include <utility>

#include "common/log.h"
#include "fabric/loopback/network_state.h"
#include "fabric/protocol.h"

namespace moiety::fabric::loopback {
namespace {

using State = LoopbackNetwork::State;
using Lock = std::unique_lock<std::mutex>;

constexpr auto kToWorker = static_cast<std::size_t>(Direction::kToWorker);
constexpr auto kToRouter = static_cast<std::size_t>(Direction::kToRouter);

/// Takes the first item that is due, or waits for one. Empty at the deadline and when interrupted.
std::optional<Item> next_item(Mailbox& mailbox, Lock& lock, Deadline deadline) {
  for (;;) {
    if (mailbox.interrupted) return std::nullopt;
    const auto now = Clock::now();
    if (!mailbox.items.empty() && mailbox.items.begin()->first <= now) {
      Item item = std::move(mailbox.items.begin()->second);
      mailbox.items.erase(mailbox.items.begin());
      return item;
    }
    if (now >= deadline) return std::nullopt;
    auto until = deadline;
    if (!mailbox.items.empty()) until = std::min(until, mailbox.items.begin()->first);
    mailbox.changed.wait_until(lock, until);
  }
}

Event no_event(Mailbox& mailbox) {
  Event event;
  event.type =
      std::exchange(mailbox.interrupted, false) ? Event::Type::kInterrupted : Event::Type::kTimeout;
  return event;
}

class LoopbackPort final : public WorkerPort {
 public:
  LoopbackPort(std::shared_ptr<State> state, const LaneIdentity& identity)
      : state_(std::move(state)) {
    const Lock lock(state_->mutex);
    port_.identity = identity;
    port_.address = fmt::format("loop:{}", ++state_->ports_opened);
    state_->ports[port_.address] = &port_;
  }

  ~LoopbackPort() override {
    const Lock lock(state_->mutex);
    state_->kill(port_);
    state_->ports.erase(port_.address);
  }

  const std::string& address() const override { return port_.address; }

  void set_identity(const LaneIdentity& identity) override {
    const Lock lock(state_->mutex);
    port_.identity = identity;
  }

  Event wait(Deadline deadline) override {
    Lock lock(state_->mutex);
    for (;;) {
      std::optional<Item> item = next_item(*port_.mailbox, lock, deadline);
      if (!item) return no_event(*port_.mailbox);
      const auto connection = item->connection;
      if (item->type == Item::Type::kHello) {
        greet(connection, item->bytes);
        continue;
      }
      Event event;
      event.peer = connection->lane;
      if (item->type == Item::Type::kLost) {
        connection->open[kToWorker] = false;
        port_.lanes.erase(connection->lane);
        if (!connection->greeted) continue;
        event.type = Event::Type::kPeerLost;
        event.error =
            fail(ErrorCode::kUnavailable, fmt::format("router {} is gone", connection->router));
        return event;
      }
      event.type = Event::Type::kMessage;
      event.header = item->header;
      event.payload = std::move(item->bytes);
      return event;
    }
  }

  Result<void> send(std::uint64_t lane,
                    const Header& header,
                    std::vector<std::byte> payload) override {
    MOIETY_TRY(check_payload_size(payload.size()));
    const Lock lock(state_->mutex);
    const auto it = port_.lanes.find(lane);
    if (it == port_.lanes.end())
      return fail(ErrorCode::kUnavailable, fmt::format("lane {} is gone", lane));
    state_->send(it->second, Direction::kToRouter, header, std::move(payload));
    return {};
  }

  void interrupt() override {
    const Lock lock(state_->mutex);
    port_.mailbox->interrupted = true;
    port_.mailbox->changed.notify_one();
  }

 private:
  void greet(const std::shared_ptr<Connection>& connection, std::span<const std::byte> request) {
    HelloVerdict verdict = judge_hello(request, port_.identity);
    connection->greeted = verdict.accepted;
    if (!verdict.accepted)
      log_warning("{} refuses router {}: {}", port_.address, verdict.router, verdict.refusal);
    if (state_->pair(connection->router, connection->worker).partitioned) return;
    state_->post(Direction::kToRouter,
                 Item{Item::Type::kAnswer, connection, {}, std::move(verdict.answer)});
  }

  const std::shared_ptr<State> state_;
  Port port_;
};

class LoopbackLane final : public RouterLane {
 public:
  LoopbackLane(std::shared_ptr<State> state, const LaneIdentity& identity)
      : state_(std::move(state)), identity_(identity) {}

  ~LoopbackLane() override {
    const Lock lock(state_->mutex);
    for (auto& [worker, connection] : workers_) state_->close(connection, Direction::kToRouter);
    for (auto& [worker, greeting] : greetings_)
      state_->close(greeting.connection, Direction::kToRouter);
  }

  void connect(const std::string& address,
               std::uint64_t worker,
               std::uint64_t incarnation,
               Deadline deadline) override {
    const Lock lock(state_->mutex);
    forget(worker);
    const auto port = state_->ports.find(address);
    if (port == state_->ports.end() || !port->second->alive) {
      failures_.push_back(
          lost(worker, address, fail(ErrorCode::kUnavailable, "nobody listens there")));
      return;
    }
    const auto connection = make_connection(*port->second, worker);
    if (!state_->pair(identity_.id, worker).partitioned) {
      auto hello = encode_hello({identity_.id, worker, incarnation, identity_.token});
      state_->post(Direction::kToWorker,
                   Item{Item::Type::kHello, connection, {}, std::move(hello)});
    }
    greetings_[worker] = {connection, address, incarnation, deadline};
  }

  void disconnect(std::uint64_t worker) override {
    const Lock lock(state_->mutex);
    forget(worker);
  }

  bool connected(std::uint64_t worker) const override {
    const Lock lock(state_->mutex);
    return workers_.contains(worker);
  }

  Result<void> send(std::uint64_t worker,
                    const Header& header,
                    std::vector<std::byte> payload) override {
    MOIETY_TRY(check_payload_size(payload.size()));
    const Lock lock(state_->mutex);
    const auto it = workers_.find(worker);
    if (it == workers_.end()) {
      return fail(ErrorCode::kWorkerLost, fmt::format("worker {} is not connected", worker));
    }
    bytes_sent_ += payload.size();
    state_->send(it->second, Direction::kToWorker, header, std::move(payload));
    return {};
  }

  Event wait(Deadline deadline) override {
    Lock lock(state_->mutex);
    for (;;) {
      if (!failures_.empty()) {
        Event event = std::move(failures_.front());
        failures_.pop_front();
        return event;
      }
      auto until = deadline;
      for (const auto& [worker, greeting] : greetings_) until = std::min(until, greeting.deadline);
      std::optional<Item> item = next_item(*mailbox_, lock, until);
      if (item) return take(*item);
      if (mailbox_->interrupted) return no_event(*mailbox_);
      expire_greetings();
      if (failures_.empty() && Clock::now() >= deadline) return no_event(*mailbox_);
    }
  }

  void interrupt() override {
    const Lock lock(state_->mutex);
    mailbox_->interrupted = true;
    mailbox_->changed.notify_one();
  }

  std::uint64_t bytes_sent() const override { return bytes_sent_; }
  std::uint64_t bytes_received() const override { return bytes_received_; }

 private:
  /// A connection whose hello is not answered yet.
  struct Greeting {
    std::shared_ptr<Connection> connection;
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

  Event take(Item& item) {
    const std::uint64_t worker = item.connection->worker;
    if (const auto it = greetings_.find(worker); it != greetings_.end()) {
      const Greeting greeting = std::move(it->second);
      greetings_.erase(it);
      const Result<void> verdict =
          item.type == Item::Type::kAnswer
              ? check_hello_answer(item.bytes, worker, greeting.incarnation)
              : fail(ErrorCode::kUnavailable, "the port closed before it answered");
      if (!verdict) {
        state_->close(greeting.connection, Direction::kToRouter);
        return lost(worker, greeting.address, verdict.error());
      }
      workers_[worker] = greeting.connection;
      Event event;
      event.type = Event::Type::kConnected;
      event.peer = worker;
      return event;
    }
    Event event;
    event.peer = worker;
    if (item.type == Item::Type::kLost) {
      item.connection->open[kToRouter] = false;
      workers_.erase(worker);
      event.type = Event::Type::kPeerLost;
      event.error = fail(ErrorCode::kWorkerLost, fmt::format("worker {} is gone", worker));
      return event;
    }
    event.type = Event::Type::kMessage;
    event.header = item.header;
    event.payload = std::move(item.bytes);
    bytes_received_ += event.payload.size();
    return event;
  }

  void expire_greetings() {
    const auto now = Clock::now();
    for (auto it = greetings_.begin(); it != greetings_.end();) {
      if (now < it->second.deadline) {
        ++it;
        continue;
      }
      state_->close(it->second.connection, Direction::kToRouter);
      failures_.push_back(
          lost(it->first, it->second.address,
               fail(ErrorCode::kUnavailable, "nobody answered before the deadline")));
      it = greetings_.erase(it);
    }
  }

  void forget(std::uint64_t worker) {
    std::erase_if(failures_, [&](const Event& event) { return event.peer == worker; });
    if (const auto it = greetings_.find(worker); it != greetings_.end()) {
      state_->close(it->second.connection, Direction::kToRouter);
      greetings_.erase(it);
    }
    if (const auto it = workers_.find(worker); it != workers_.end()) {
      state_->close(it->second, Direction::kToRouter);
      workers_.erase(it);
    }
  }

  std::shared_ptr<Connection> make_connection(Port& port, std::uint64_t worker) {
    auto connection = std::make_shared<Connection>();
    connection->router = identity_.id;
    connection->worker = worker;
    connection->lane = ++state_->lanes_opened;
    connection->mailbox[kToWorker] = port.mailbox;
    connection->mailbox[kToRouter] = mailbox_;
    port.lanes[connection->lane] = connection;
    std::erase_if(state_->connections, [](const auto& weak) { return weak.expired(); });
    state_->connections.push_back(connection);
    return connection;
  }

  const std::shared_ptr<State> state_;
  const LaneIdentity identity_;
  const std::shared_ptr<Mailbox> mailbox_ = std::make_shared<Mailbox>();
  std::map<std::uint64_t, Greeting> greetings_;                             ///< by worker
  std::unordered_map<std::uint64_t, std::shared_ptr<Connection>> workers_;  ///< those connected
  std::deque<Event> failures_;  ///< connects that failed, not told yet
  std::uint64_t bytes_sent_ = 0;
  std::uint64_t bytes_received_ = 0;
};

}  // namespace

std::unique_ptr<WorkerPort> open_port(std::shared_ptr<State> state, const LaneIdentity& identity) {
  return std::make_unique<LoopbackPort>(std::move(state), identity);
}

std::unique_ptr<RouterLane> open_lane(std::shared_ptr<State> state, const LaneIdentity& identity) {
  return std::make_unique<LoopbackLane>(std::move(state), identity);
}

}  // namespace moiety::fabric::loopback
