#include <algorithm>

#include "fabric/loopback/loopback.h"
#include "fabric/loopback/network_state.h"

namespace moiety::fabric {
namespace {

constexpr std::size_t kHistoryMessages = 16;

std::size_t index(Direction direction) { return static_cast<std::size_t>(direction); }

Direction opposite(Direction direction) {
  return direction == Direction::kToWorker ? Direction::kToRouter : Direction::kToWorker;
}

}  // namespace

using loopback::Connection;
using loopback::Item;
using loopback::Mailbox;
using loopback::Pair;
using loopback::Port;
using loopback::Way;

Pair& LoopbackNetwork::State::pair(std::uint64_t router, std::uint64_t worker) {
  const auto [it, added] = pairs.try_emplace({router, worker});
  if (added) {
    for (std::size_t way = 0; way < 2; ++way) {
      std::seed_seq sequence{seed,         seed >> 32,        router, router >> 32, worker,
                             worker >> 32, std::uint64_t{way}};
      it->second.ways[way].random.seed(sequence);
    }
  }
  return it->second;
}

void LoopbackNetwork::State::post(Direction direction, Item item) {
  Connection& connection = *item.connection;
  const std::size_t side = index(direction);
  if (!connection.open[side]) return;
  const auto due = Clock::now() + pair(connection.router, connection.worker).delay;
  connection.last_due[side] = std::max(connection.last_due[side], due);
  auto& mailbox = *connection.mailbox[side];
  mailbox.items.emplace(connection.last_due[side], std::move(item));
  mailbox.changed.notify_one();
}

void LoopbackNetwork::State::send(const std::shared_ptr<Connection>& connection,
                                  Direction direction,
                                  const Header& header,
                                  std::vector<std::byte> payload) {
  Pair& faults = pair(connection->router, connection->worker);
  Way& way = faults.ways[index(direction)];
  // Always draws, so that the n-th message meets the n-th number whatever else happens to it.
  const double drawn = std::uniform_real_distribution<double>(0, 1)(way.random);
  if (!connection->open[0] || !connection->open[1]) return;
  way.history.emplace_back(header, payload);
  if (way.history.size() > kHistoryMessages) way.history.pop_front();
  if (faults.partitioned) return;
  if (way.drop_next > 0) {
    --way.drop_next;
    return;
  }
  if (drawn < way.drop_probability) return;
  post(direction, Item{Item::Type::kMessage, connection, header, std::move(payload)});
}

void LoopbackNetwork::State::close(const std::shared_ptr<Connection>& connection, Direction side) {
  if (!connection->open[index(side)]) return;
  connection->open[index(side)] = false;
  std::erase_if(connection->mailbox[index(side)]->items,
                [&](const auto& entry) { return entry.second.connection == connection; });
  const Direction other = opposite(side);
  if (!connection->open[index(other)]) return;
  if (pair(connection->router, connection->worker).partitioned) {
    connection->loss_owed[index(other)] = true;
  } else {
    post(other, Item{Item::Type::kLost, connection, {}, {}});
  }
}

void LoopbackNetwork::State::kill(Port& port) {
  port.alive = false;
  for (auto& [lane, connection] : port.lanes) close(connection, Direction::kToWorker);
  port.lanes.clear();
  port.mailbox->items.clear();
}

LoopbackNetwork::LoopbackNetwork(std::uint64_t seed) : state_(std::make_shared<State>(seed)) {}
LoopbackNetwork::~LoopbackNetwork() = default;

std::unique_ptr<WorkerPort> LoopbackNetwork::make_port(const LaneIdentity& identity) {
  return loopback::open_port(state_, identity);
}

std::unique_ptr<RouterLane> LoopbackNetwork::make_router_lane(const LaneIdentity& identity) {
  return loopback::open_lane(state_, identity);
}

void LoopbackNetwork::set_delay(std::uint64_t router,
                                std::uint64_t worker,
                                std::chrono::nanoseconds delay) {
  const std::lock_guard lock(state_->mutex);
  state_->pair(router, worker).delay = delay;
}

void LoopbackNetwork::drop_next(std::uint64_t router,
                                std::uint64_t worker,
                                Direction direction,
                                std::uint64_t count) {
  const std::lock_guard lock(state_->mutex);
  state_->pair(router, worker).ways[index(direction)].drop_next = count;
}

void LoopbackNetwork::set_drop_probability(std::uint64_t router,
                                           std::uint64_t worker,
                                           Direction direction,
                                           double probability) {
  const std::lock_guard lock(state_->mutex);
  state_->pair(router, worker).ways[index(direction)].drop_probability = probability;
}

void LoopbackNetwork::set_partition(std::uint64_t router, std::uint64_t worker, bool on) {
  const std::lock_guard lock(state_->mutex);
  state_->pair(router, worker).partitioned = on;
  if (on) return;
  for (const auto& weak : state_->connections) {
    const auto connection = weak.lock();
    if (connection == nullptr || connection->router != router || connection->worker != worker)
      continue;
    for (const Direction side : {Direction::kToWorker, Direction::kToRouter}) {
      if (!std::exchange(connection->loss_owed[index(side)], false)) continue;
      state_->post(side, Item{Item::Type::kLost, connection, {}, {}});
    }
  }
}

bool LoopbackNetwork::replay(std::uint64_t router,
                             std::uint64_t worker,
                             Direction direction,
                             std::uint64_t age) {
  const std::lock_guard lock(state_->mutex);
  const auto& history = state_->pair(router, worker).ways[index(direction)].history;
  if (age >= history.size()) return false;
  for (const auto& weak : state_->connections) {
    const auto connection = weak.lock();
    if (connection == nullptr || connection->router != router || connection->worker != worker)
      continue;
    if (!connection->greeted || !connection->open[0] || !connection->open[1]) continue;
    const auto& [header, payload] = history[history.size() - 1 - age];
    state_->post(direction, Item{Item::Type::kMessage, connection, header, payload});
    return true;
  }
  return false;
}

void LoopbackNetwork::kill(std::uint64_t worker) {
  const std::lock_guard lock(state_->mutex);
  for (const auto& [address, port] : state_->ports) {
    if (port->identity.id == worker && port->alive) state_->kill(*port);
  }
}

void LoopbackNetwork::kill_router(std::uint64_t router) {
  const std::lock_guard lock(state_->mutex);
  for (const auto& weak : state_->connections) {
    const auto connection = weak.lock();
    if (connection == nullptr || connection->router != router) continue;
    if (!connection->open[index(Direction::kToRouter)]) continue;
    state_->close(connection, Direction::kToRouter);
    Mailbox& mailbox = *connection->mailbox[index(Direction::kToRouter)];
    mailbox.items.emplace(Clock::now(), Item{Item::Type::kLost, connection, {}, {}});
    mailbox.changed.notify_one();
  }
  for (auto& [ids, pair] : state_->pairs) {
    if (ids.first != router) continue;
    for (Way& way : pair.ways) way.history.clear();
  }
}

}  // namespace moiety::fabric
