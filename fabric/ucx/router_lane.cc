#include <fmt/format.h>

#include "fabric/protocol.h"
#include "fabric/ucx/engine.h"
#include "fabric/ucx/ucx_lane.h"

namespace moiety::fabric {
namespace {

class UcxRouterLane final : public RouterLane {
 public:
  UcxRouterLane(LaneIdentity identity, std::unique_ptr<ucx::Engine> engine)
      : identity_(std::move(identity)), engine_(std::move(engine)) {}

  Result<void> connect(const std::string& address,
                       std::uint64_t worker,
                       std::uint64_t incarnation,
                       Deadline deadline) override {
    disconnect(worker);
    const std::string where = fmt::format("worker {} at {}", worker, address);
    auto dialled = engine_->dial(address, worker);
    if (!dialled) return with_context(where, std::move(dialled).error());
    const std::shared_ptr<ucx::Connection> connection = *dialled;
    engine_->send_hello(connection,
                        encode_hello({identity_.id, worker, incarnation, identity_.token}));
    auto verdict = await_answer(*connection, worker, incarnation, deadline);
    if (!verdict) {
      engine_->forget(worker);
      return with_context(where, std::move(verdict).error());
    }
    connection->state = ucx::Connection::State::kOpen;
    return {};
  }

  void disconnect(std::uint64_t worker) override { engine_->forget(worker); }
  bool connected(std::uint64_t worker) const override { return engine_->find(worker) != nullptr; }

  Result<void> send(std::uint64_t worker,
                    const Header& header,
                    std::vector<std::byte> payload) override {
    MOIETY_TRY(check_payload_size(payload.size()));
    const auto connection = engine_->find(worker);
    if (connection == nullptr || !engine_->send(connection, header, std::move(payload))) {
      return fail(ErrorCode::kWorkerLost, fmt::format("worker {} is not connected", worker));
    }
    return {};
  }

  Event wait(Deadline deadline) override { return engine_->wait(deadline, nullptr); }
  void interrupt() override { engine_->interrupt(); }
  std::uint64_t bytes_sent() const override { return engine_->bytes_sent(); }
  std::uint64_t bytes_received() const override { return engine_->bytes_received(); }

 private:
  Result<void> await_answer(const ucx::Connection& connection,
                            std::uint64_t worker,
                            std::uint64_t incarnation,
                            Deadline deadline) {
    const bool settled =
        engine_->run(deadline, [&] { return connection.broken || !connection.hello.empty(); });
    engine_->take_hellos();
    if (!settled) return fail(ErrorCode::kUnavailable, "nobody answered before the deadline");
    if (connection.hello.empty()) return fail(ErrorCode::kUnavailable, connection.why);
    return check_hello_answer(connection.hello, worker, incarnation);
  }

  const LaneIdentity identity_;
  const std::unique_ptr<ucx::Engine> engine_;
};

}  // namespace

Result<std::unique_ptr<RouterLane>> open_ucx_router_lane(const LaneIdentity& identity) {
  MOIETY_ASSIGN(auto engine, ucx::Engine::create());
  return std::make_unique<UcxRouterLane>(identity, std::move(engine));
}

}  // namespace moiety::fabric
