#include "worker/lane_loop.h"

#include <cstring>

#include "common/log.h"
#include "experts/exchange.h"

namespace moiety {
namespace {

constexpr std::chrono::seconds kIdleWait{5};

std::uint64_t now_ns() {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch())
          .count());
}

}  // namespace

LaneLoop::LaneLoop(fabric::WorkerPort& port,
                   const ExpertStore& store,
                   ExpertRunner& runner,
                   std::int32_t hidden_size,
                   std::uint64_t worker_id,
                   std::uint64_t incarnation)
    : port_(port),
      store_(store),
      runner_(runner),
      hidden_size_(hidden_size),
      worker_id_(worker_id),
      incarnation_(incarnation) {}

void LaneLoop::stop() {
  stop_ = true;
  port_.interrupt();
}

void LaneLoop::run() {
  while (!stop_) {
    const fabric::Event event = port_.wait(Clock::now() + kIdleWait);
    if (event.type == fabric::Event::Type::kMessage) {
      answer(event);
    } else if (event.type == fabric::Event::Type::kPeerLost) {
      log_debug("lane {} ended", event.peer);
    }
  }
}

Result<std::vector<std::byte>> LaneLoop::compute(const fabric::Event& event) {
  const fabric::Header& header = event.header;
  if (header.kind != fabric::Kind::kDispatch) {
    return fail(ErrorCode::kInvalidArgument, "a worker takes dispatch messages only");
  }
  if (header.incarnation != incarnation_) {
    return fail(ErrorCode::kLeaseLost, "the message is for another incarnation of this worker");
  }
  MOIETY_ASSIGN(const Dispatch dispatch, decode_dispatch(event.payload));
  if (dispatch.hidden_size != hidden_size_) {
    return fail(ErrorCode::kInvalidArgument, "rows of " + std::to_string(dispatch.hidden_size) +
                                                 " values, the model has " +
                                                 std::to_string(hidden_size_));
  }
  const DType inputs = store_.dtype() == DType::kF32 ? DType::kF32 : DType::kBF16;
  if (dispatch.dtype != inputs) {
    return fail(ErrorCode::kInvalidArgument,
                "rows come as " + std::string(dtype_name(dispatch.dtype)) +
                    ", this worker's experts take " + std::string(dtype_name(inputs)) +
                    ": start routers and workers with the same --dtype");
  }
  const auto hidden = static_cast<std::size_t>(dispatch.hidden_size);
  const auto layer = static_cast<std::int32_t>(header.layer);
  if (dispatch.combine == CombineMode::kPerExpert) {
    rows_.resize(dispatch.pairs.num_pairs() * hidden);
    MOIETY_TRY(runner_.run_pairs(store_, layer, dispatch.hidden_size, dispatch.rows, dispatch.pairs,
                                 rows_));
  } else {
    rows_.resize(dispatch.pairs.num_rows() * hidden);
    MOIETY_TRY(runner_.run_rows(store_, layer, dispatch.hidden_size, dispatch.rows, dispatch.pairs,
                                rows_));
  }
  rows_processed_ += dispatch.pairs.num_pairs();
  return encode_rows(rows_);
}

void LaneLoop::answer(const fabric::Event& event) {
  fabric::Header header = event.header;
  header.received_ns = header.started_ns = now_ns();
  auto computed = compute(event);
  header.finished_ns = now_ns();
  header.kind = computed ? fabric::Kind::kReply : fabric::Kind::kError;
  header.sender = worker_id_;
  std::vector<std::byte> payload;
  if (computed) {
    payload = std::move(*computed);
  } else {
    const Error& error = computed.error();
    log_error("layer {} of step {}: {}", header.layer, header.step, error.message);
    const std::string text = std::string(error_info(error.code).name) + "\n" + error.message;
    payload.resize(text.size());
    std::memcpy(payload.data(), text.data(), text.size());
  }
  header.sent_ns = now_ns();
  if (auto sent = port_.send(event.peer, header, std::move(payload)); !sent) {
    log_debug("lane {}: {}", event.peer, sent.error().message);
  }
  ++dispatches_;
}

}  // namespace moiety
