#include "fabric/mpi/engine.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>

#include "common/log.h"
#include "fabric/mpi/world.h"
#include "fabric/protocol.h"

namespace moiety::fabric::mpi {
namespace {

using namespace std::chrono_literals;

/// Nobody rings for a rank of another host, or when a ring was lost. So a sleep ends after an
/// eighth of the time since something last moved, within these bounds.
constexpr std::chrono::nanoseconds kShortestSleep = 50us;
constexpr std::chrono::nanoseconds kLongestSleep = 10ms;
/// Where all peers ring, looking without a ring only guards against a lost one.
constexpr std::chrono::nanoseconds kLongestSleepWithLines = 50ms;
/// Nor does anybody ring for the parts of a long message: for so long wait() yields instead of
/// sleeping.
constexpr auto kPartsSpin = 20ms;
/// How often a busy rank looks at its doorbell.
constexpr auto kListenInterval = 500us;
/// Rounds without an arrival after which nothing is expected now.
constexpr int kQuietRounds = 3;
constexpr int kClosingRounds = 1000;
/// Lines of connections whose hello has not come.
constexpr std::size_t kMaxLinesWaiting = 256;

/// Requests that never completed, with their buffers. Never freed: MPI may still write or read
/// them.
template <class Item>
void keep_for_ever(std::list<Item>& items) {
  static auto* kept = new std::list<Item>;
  kept->splice(kept->end(), items);
}

std::uint64_t new_number() {
  static std::mt19937_64 random{std::random_device{}()};
  return random();
}

}  // namespace

Result<std::unique_ptr<Engine>> Engine::create(bool listen, Greeter on_greeting) {
  MOIETY_ASSIGN(const MpiWorld world, join_mpi_world());
  if (!acquire()) {
    return fail(ErrorCode::kFailedPrecondition,
                "this process has an MPI port or lane already; close it first");
  }
  auto bell = Doorbell::create(world_name(), listen ? world.rank : -1);
  if (!bell) {
    release();
    return std::move(bell).error();
  }
  return std::unique_ptr<Engine>(new Engine(world, std::move(*bell), std::move(on_greeting)));
}

Engine::~Engine() {
  while (!by_peer_.empty()) forget(by_peer_.begin()->first);
  for (int round = 0; round < kClosingRounds && !outgoing_.empty(); ++round) complete_sends();
  keep_for_ever(outgoing_);
  for (auto& [rank, source] : sources_) keep_for_ever(source.queue);
  release();
}

std::shared_ptr<Connection> Engine::open(int rank,
                                         std::uint64_t peer,
                                         std::uint64_t number,
                                         bool dial) {
  forget(peer);
  if (const auto other = find_rank(rank)) forget(other->peer);
  auto connection = std::make_shared<Connection>();
  connection->rank = rank;
  connection->peer = peer;
  connection->number = number != 0 ? number : new_number();
  connection->dialled = dial;
  if (dial) {
    connection->line = bell_->dial(rank, connection->number);
  } else {
    listen(0ns);  // the other side dialled before it said hello
    if (const auto it = lines_.find(connection->number); it != lines_.end()) {
      connection->line = it->second;
      lines_.erase(it);
    }
  }
  by_rank_[rank] = connection;
  by_peer_[peer] = connection;
  return connection;
}

void Engine::remove(const std::shared_ptr<Connection>& connection) {
  bell_->hang_up(connection->line);
  by_rank_.erase(connection->rank);
  by_peer_.erase(connection->peer);
}

void Engine::forget(std::uint64_t peer) {
  if (const auto connection = find(peer)) {
    greet(connection->rank, kBye, connection->number, {});
    remove(connection);
  }
  std::erase_if(events_, [&](const Event& event) { return event.peer == peer; });
}

void Engine::lose(const std::shared_ptr<Connection>& connection, Error why) {
  const auto present = find(connection->peer);
  if (present != connection) return;
  log_debug("mpi connection {} with rank {} ended: {}", connection->peer, connection->rank,
            why.message);
  remove(connection);
  if (!connection->open && !connection->dialled) return;
  Event event;
  event.type = Event::Type::kPeerLost;
  event.peer = connection->peer;
  event.error = std::move(why);
  events_.push_back(std::move(event));
}

std::shared_ptr<Connection> Engine::find(std::uint64_t peer) const {
  const auto it = by_peer_.find(peer);
  return it == by_peer_.end() ? nullptr : it->second;
}

std::shared_ptr<Connection> Engine::find_rank(int rank) const {
  const auto it = by_rank_.find(rank);
  return it == by_rank_.end() ? nullptr : it->second;
}

bool Engine::progress() {
  bool moved = match_arrivals();
  moved |= complete_arrivals();
  moved |= complete_sends();
  rounds_since_moved_ = moved ? 0 : rounds_since_moved_ + 1;
  if (rounds_since_moved_ >= kQuietRounds) lose_ended();
  return moved;
}

/// A peer that ended is lost after what it sent before.
void Engine::lose_ended() {
  std::vector<std::shared_ptr<Connection>> ended;
  for (const auto& [rank, connection] : by_rank_) {
    if (connection->line_ended) ended.push_back(connection);
  }
  for (const auto& connection : ended) {
    lose(connection,
         connection->dialled
             ? fail(connection->open ? ErrorCode::kWorkerLost : ErrorCode::kUnavailable,
                    fmt::format("MPI rank {} ended or closed the lane", connection->rank))
             : fail(ErrorCode::kUnavailable,
                    fmt::format("the router at MPI rank {} is gone", connection->rank)));
  }
}

void Engine::listen(std::chrono::nanoseconds limit) {
  for (const Doorbell::News& news : bell_->poll(limit)) {
    if (!news.ended) {
      const auto known = std::find_if(by_rank_.begin(), by_rank_.end(), [&](const auto& entry) {
        return entry.second->number == news.connection && !entry.second->dialled;
      });
      if (known != by_rank_.end() && known->second->line == Doorbell::kNoLine) {
        known->second->line = news.line;
      } else {
        if (lines_.size() >= kMaxLinesWaiting) {
          bell_->hang_up(lines_.begin()->second);
          lines_.erase(lines_.begin());
        }
        lines_[news.connection] = news.line;
      }
      continue;
    }
    std::erase_if(lines_, [&](const auto& entry) { return entry.second == news.line; });
    for (const auto& [rank, connection] : by_rank_) {
      if (connection->line != news.line) continue;
      connection->line_ended = true;
    }
  }
  // MPI_Improbe looks first and makes progress then, so that one call finds nothing new.
  rounds_since_moved_ = 0;
  last_listened_ = Clock::now();
}

bool Engine::is_message_under_way() const {
  const auto alive = [&](int rank) { return by_rank_.contains(rank); };
  return std::any_of(outgoing_.begin(), outgoing_.end(),
                     [&](const Outgoing& message) { return alive(message.rank); }) ||
         std::any_of(sources_.begin(), sources_.end(), [&](const auto& entry) {
           return !entry.second.queue.empty() && alive(entry.first);
         });
}

std::chrono::nanoseconds Engine::sleep_length(Clock::time_point now) const {
  const std::chrono::nanoseconds idle = now - last_moved_;
  if (is_message_under_way()) {
    return idle < kPartsSpin ? 0ns : std::clamp(idle / 64, kShortestSleep, kLongestSleep);
  }
  const bool all_ring =
      !by_rank_.empty() && std::all_of(by_rank_.begin(), by_rank_.end(), [](const auto& entry) {
        return entry.second->line != Doorbell::kNoLine;
      });
  return std::clamp(idle / 8, kShortestSleep, all_ring ? kLongestSleepWithLines : kLongestSleep);
}

Event Engine::wait(Deadline deadline) {
  const auto began = Clock::now();
  const auto spin = usual_wait_.spin();
  auto spin_until = began + spin;
  Event event;
  for (;;) {
    const bool moved = progress();
    if (interrupted_.load() && interrupted_.exchange(false)) {
      event.type = Event::Type::kInterrupted;
      return event;
    }
    const auto now = Clock::now();
    if (moved) {
      spin_until = now + spin;
      last_moved_ = now;
    }
    if (events_.empty() && now - last_listened_ > kListenInterval) listen(0ns);
    if (!events_.empty()) {
      event = std::move(events_.front());
      events_.pop_front();
      if (event.type == Event::Type::kMessage) bytes_received_ += event.payload.size();
      // Not of a look at what is there already.
      if (deadline > began) usual_wait_.add(Clock::now() - began);
      return event;
    }
    if (now >= deadline) return event;
    if (moved || rounds_since_moved_ < kQuietRounds) continue;
    if (now < spin_until) {
      sched_yield();
    } else {
      const auto length = std::min<std::chrono::nanoseconds>(deadline - now, sleep_length(now));
      if (length == 0ns) sched_yield();
      listen(length);
    }
  }
}

void Engine::interrupt() {
  interrupted_.store(true);
  bell_->interrupt();
}

}  // namespace moiety::fabric::mpi
