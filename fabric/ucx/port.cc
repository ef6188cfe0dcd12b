#include <fmt/format.h>

#include "common/log.h"
#include "fabric/protocol.h"
#include "fabric/ucx/engine.h"
#include "fabric/ucx/ucx_lane.h"

namespace moiety::fabric {
namespace {

class UcxPort final : public WorkerPort {
 public:
  UcxPort(LaneIdentity identity, std::unique_ptr<ucx::Engine> engine, std::string address)
      : identity_(std::move(identity)), engine_(std::move(engine)), address_(std::move(address)) {}

  const std::string& address() const override { return address_; }
  void set_identity(const LaneIdentity& identity) override { identity_ = identity; }

  Event wait(Deadline deadline) override {
    return engine_->wait(deadline, [this] {
      for (const auto& connection : engine_->take_hellos()) greet(connection);
    });
  }

  Result<void> send(std::uint64_t lane,
                    const Header& header,
                    std::vector<std::byte> payload) override {
    MOIETY_TRY(check_payload_size(payload.size()));
    const auto connection = engine_->find(lane);
    if (connection == nullptr || connection->state != ucx::Connection::State::kOpen ||
        !engine_->send(connection, header, std::move(payload))) {
      return fail(ErrorCode::kUnavailable, fmt::format("lane {} is gone", lane));
    }
    return {};
  }

  void interrupt() override { engine_->interrupt(); }

 private:
  void greet(const std::shared_ptr<ucx::Connection>& connection) {
    if (connection->broken) return;
    HelloVerdict verdict = judge_hello(connection->hello, identity_);
    connection->state =
        verdict.accepted ? ucx::Connection::State::kOpen : ucx::Connection::State::kRefused;
    if (!verdict.accepted)
      log_warning("{} refuses router {}: {}", address_, verdict.router, verdict.refusal);
    engine_->send_hello(connection, std::move(verdict.answer));
  }

  LaneIdentity identity_;
  const std::unique_ptr<ucx::Engine> engine_;
  const std::string address_;
};

}  // namespace

Result<std::unique_ptr<WorkerPort>> open_ucx_port(const LaneIdentity& identity,
                                                  const std::string& bind_host) {
  MOIETY_ASSIGN(auto engine, ucx::Engine::create(bind_host));
  MOIETY_ASSIGN(auto address, engine->listen(bind_host));
  return std::make_unique<UcxPort>(identity, std::move(engine), std::move(address));
}

}  // namespace moiety::fabric
