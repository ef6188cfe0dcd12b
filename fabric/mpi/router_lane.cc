#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <map>

#include "fabric/mpi/engine.h"
#include "fabric/mpi/mpi_lane.h"
#include "fabric/protocol.h"

namespace moiety::fabric {
namespace {

Result<int> parse_rank(const std::string& address, const MpiWorld& world) {
  constexpr std::string_view kScheme = "mpi:";
  int rank = -1;
  if (address.starts_with(kScheme)) {
    const char* end = address.data() + address.size();
    const auto [stop, error] = std::from_chars(address.data() + kScheme.size(), end, rank);
    if (error != std::errc{} || stop != end) rank = -1;
  }
  if (rank < 0 || rank >= world.size || rank == world.rank) {
    return fail(ErrorCode::kInvalidArgument,
                fmt::format("not another rank of this MPI world of {} (mpi:RANK): start router and "
                            "workers with one mpirun and --fabric mpi",
                            world.size));
  }
  return rank;
}

class MpiRouterLane final : public RouterLane {
 public:
  explicit MpiRouterLane(LaneIdentity identity) : identity_(std::move(identity)) {}

  Result<void> start() {
    MOIETY_ASSIGN(engine_, mpi::Engine::create(false, [this](int rank, std::uint64_t connection,
                                                             std::span<const std::byte> answer) {
                    check_answer(rank, connection, answer);
                  }));
    return {};
  }

  void connect(const std::string& address,
               std::uint64_t worker,
               std::uint64_t incarnation,
               Deadline deadline) override {
    disconnect(worker);
    const auto rank = parse_rank(address, engine_->world());
    if (!rank) {
      engine_->add(lost(worker, address, rank.error()));
      return;
    }
    if (const auto other = engine_->find_rank(*rank)) {
      // Two worker ids at one rank: the placement is being changed, the later one counts.
      const auto it = greetings_.find(other->peer);
      const std::string at = it == greetings_.end() ? address : it->second.address;
      const std::uint64_t replaced = other->peer;
      disconnect(replaced);
      engine_->add(lost(replaced, at,
                        fail(ErrorCode::kWorkerLost, "another worker took over its MPI rank")));
    }
    const auto connection = engine_->open(*rank, worker, 0, true);
    greetings_[worker] = {address, incarnation, deadline};
    engine_->greet(*rank, mpi::kHello, connection->number,
                   encode_hello({identity_.id, worker, incarnation, identity_.token}));
  }

  void disconnect(std::uint64_t worker) override {
    greetings_.erase(worker);
    engine_->forget(worker);
  }

  bool connected(std::uint64_t worker) const override {
    const auto connection = engine_->find(worker);
    return connection != nullptr && connection->open;
  }

  Result<void> send(std::uint64_t worker,
                    const Header& header,
                    std::vector<std::byte> payload) override {
    MOIETY_TRY(check_payload_size(payload.size()));
    if (!connected(worker) || !engine_->send(engine_->find(worker), header, std::move(payload)))
      return fail(ErrorCode::kWorkerLost, fmt::format("worker {} is not connected", worker));
    return {};
  }

  Event wait(Deadline deadline) override {
    for (;;) {
      Deadline until = deadline;
      for (const auto& [worker, greeting] : greetings_) until = std::min(until, greeting.deadline);
      Event event = engine_->wait(until);
      if (event.type == Event::Type::kTimeout && expire_greetings()) continue;
      if (event.type == Event::Type::kTimeout && Clock::now() < deadline) continue;
      if (event.type == Event::Type::kPeerLost) {
        if (const auto it = greetings_.find(event.peer); it != greetings_.end()) {
          event = lost(event.peer, it->second.address, std::move(event.error));
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

  void check_answer(int rank, std::uint64_t number, std::span<const std::byte> answer) {
    const auto connection = engine_->find_rank(rank);
    if (connection == nullptr || connection->number != number) return;  // late
    const std::uint64_t worker = connection->peer;
    const auto it = greetings_.find(worker);
    if (it == greetings_.end()) return;
    const Greeting greeting = std::move(it->second);
    greetings_.erase(it);
    if (auto verdict = check_hello_answer(answer, worker, greeting.incarnation); !verdict) {
      engine_->forget(worker);
      engine_->add(lost(worker, greeting.address, std::move(verdict).error()));
      return;
    }
    connection->open = true;
    Event event;
    event.type = Event::Type::kConnected;
    event.peer = worker;
    engine_->add(std::move(event));
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
  std::unique_ptr<mpi::Engine> engine_;
  std::map<std::uint64_t, Greeting> greetings_;  ///< by worker
};

}  // namespace

Result<std::unique_ptr<RouterLane>> open_mpi_router_lane(const LaneIdentity& identity) {
  auto lane = std::make_unique<MpiRouterLane>(identity);
  MOIETY_TRY(lane->start());
  return lane;
}

}  // namespace moiety::fabric
