#include <fmt/format.h>

#include "common/log.h"
#include "fabric/mpi/engine.h"
#include "fabric/mpi/mpi_lane.h"
#include "fabric/protocol.h"

namespace moiety::fabric {
namespace {

class MpiPort final : public WorkerPort {
 public:
  explicit MpiPort(LaneIdentity identity) : identity_(std::move(identity)) {}

  Result<void> start() {
    MOIETY_ASSIGN(engine_, mpi::Engine::create(true, [this](int rank, std::uint64_t connection,
                                                            std::span<const std::byte> hello) {
                    greet(rank, connection, hello);
                  }));
    address_ = fmt::format("mpi:{}", engine_->world().rank);
    return {};
  }

  const std::string& address() const override { return address_; }
  void set_identity(const LaneIdentity& identity) override { identity_ = identity; }
  Event wait(Deadline deadline) override { return engine_->wait(deadline); }

  Result<void> send(std::uint64_t lane,
                    const Header& header,
                    std::vector<std::byte> payload) override {
    MOIETY_TRY(check_payload_size(payload.size()));
    const auto connection = engine_->find(lane);
    if (connection == nullptr || !engine_->send(connection, header, std::move(payload)))
      return fail(ErrorCode::kUnavailable, fmt::format("lane {} is gone", lane));
    return {};
  }

  void interrupt() override { engine_->interrupt(); }

 private:
  void greet(int rank, std::uint64_t number, std::span<const std::byte> hello) {
    if (number == 0) return;
    const HelloVerdict verdict = judge_hello(hello, identity_);
    if (verdict.accepted) {
      if (const auto old = engine_->find_rank(rank)) {
        engine_->lose(old, fail(ErrorCode::kUnavailable, "its router connected again"));
      }
      engine_->open(rank, ++lanes_opened_, number, false)->open = true;
    } else {
      log_warning("{} refuses router {} at MPI rank {}: {}", address_, verdict.router, rank,
                  verdict.refusal);
    }
    engine_->greet(rank, mpi::kAnswer, number, verdict.answer);
  }

  LaneIdentity identity_;
  std::unique_ptr<mpi::Engine> engine_;
  std::string address_;
  std::uint64_t lanes_opened_ = 0;
};

}  // namespace

Result<std::unique_ptr<WorkerPort>> open_mpi_port(const LaneIdentity& identity) {
  auto port = std::make_unique<MpiPort>(identity);
  MOIETY_TRY(port->start());
  return port;
}

}  // namespace moiety::fabric
