#include "worker/lane_loop.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "common/log.h"
#include "experts/exchange.h"
#include "worker/merge.h"

namespace moiety {
namespace {

constexpr std::chrono::seconds kIdleWait{5};
/// Messages taken before something is computed, so that a flood cannot keep us from it.
constexpr std::size_t kMaxCollected = 256;
/// A batch does not grow beyond this by merging; a single dispatch may be larger.
constexpr std::size_t kMaxMergedRows = 4096;
/// A batch that is expected to take longer has the listener beside it; handing the port over and
/// back costs some 50 us. Before anything is measured, the pairs decide.
constexpr double kListenFromNs = 2e6;
constexpr std::size_t kListenFromPairs = 64;

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
      incarnation_(incarnation),
      listener_(port) {}

void LaneLoop::stop() {
  stop_ = true;
  port_.interrupt();
}

LaneLoop::Counters LaneLoop::counters() const {
  return {dispatches_, pairs_, batches_, merged_, refused_, queue_ns_, compute_ns_};
}

void LaneLoop::run() {
  while (!stop_) {
    collect();
    if (!waiting_.empty()) serve(next_batch());
  }
}

/// Takes what has arrived; waits for it when there is nothing to do.
void LaneLoop::collect() {
  for (std::size_t taken = 0; taken < kMaxCollected; ++taken) {
    const bool idle = waiting_.empty();
    fabric::Event event = port_.wait(idle ? Clock::now() + kIdleWait : Clock::time_point::min());
    const bool ended = event.type == fabric::Event::Type::kTimeout ||
                       event.type == fabric::Event::Type::kInterrupted;
    if (ended) return;
    take(std::move(event), now_ns());
  }
}

void LaneLoop::take(fabric::Event event, std::uint64_t received_ns) {
  if (event.type == fabric::Event::Type::kPeerLost) {
    log_debug("lane {} ended: {}", event.peer, event.error.message);
    // Nobody reads the answers.
    std::erase_if(waiting_, [&](const Waiting& waiting) { return waiting.lane == event.peer; });
    return;
  }
  if (event.type != fabric::Event::Type::kMessage) return;
  fabric::Header header = event.header;
  header.received_ns = received_ns;
  auto dispatch = check(event);
  if (!dispatch) {
    header.started_ns = header.finished_ns = now_ns();
    refuse(event.peer, header, dispatch.error());
    return;
  }
  waiting_.push_back({event.peer, header, std::move(*dispatch)});
}

Result<Dispatch> LaneLoop::check(const fabric::Event& event) const {
  if (event.header.kind != fabric::Kind::kDispatch) {
    return fail(ErrorCode::kInvalidArgument, "a worker takes dispatch messages only");
  }
  if (event.header.incarnation != incarnation_) {
    return fail(ErrorCode::kLeaseLost, "the message is for another incarnation of this worker");
  }
  MOIETY_ASSIGN(Dispatch dispatch, decode_dispatch(event.payload));
  if (dispatch.hidden_size != hidden_size_) {
    return fail(ErrorCode::kInvalidArgument, fmt::format("rows of {} values, the model has {}",
                                                         dispatch.hidden_size, hidden_size_));
  }
  const DType inputs = store_.dtype() == DType::kF32 ? DType::kF32 : DType::kBF16;
  if (dispatch.dtype != inputs) {
    return fail(ErrorCode::kInvalidArgument,
                fmt::format("rows come as {}, this worker's experts take {}: start routers and "
                            "workers with the same --dtype",
                            dtype_name(dispatch.dtype), dtype_name(inputs)));
  }
  return dispatch;
}

/// The oldest dispatch and those that can share its batch.
std::deque<LaneLoop::Waiting> LaneLoop::next_batch() {
  std::deque<Waiting> batch;
  batch.push_back(std::move(waiting_.front()));
  waiting_.pop_front();
  const std::uint32_t layer = batch.front().header.layer;
  const CombineMode combine = batch.front().dispatch.combine;
  std::size_t rows = batch.front().dispatch.pairs.num_rows();
  std::deque<Waiting> rest;
  for (Waiting& waiting : waiting_) {
    const std::size_t more = waiting.dispatch.pairs.num_rows();
    if (waiting.header.layer == layer && waiting.dispatch.combine == combine &&
        rows + more <= kMaxMergedRows) {
      rows += more;
      batch.push_back(std::move(waiting));
    } else {
      rest.push_back(std::move(waiting));
    }
  }
  waiting_ = std::move(rest);
  return batch;
}

void LaneLoop::serve(std::deque<Waiting> batch) {
  const auto layer = static_cast<std::int32_t>(batch.front().header.layer);
  const std::uint64_t started = now_ns();
  for (Waiting& waiting : batch) {
    waiting.header.started_ns = started;
  }
  Result<void> computed;
  if (batch.size() == 1) {
    computed = compute(layer, batch.front().dispatch);
  } else {
    Dispatch merged;
    merged.hidden_size = hidden_size_;
    merged.combine = batch.front().dispatch.combine;
    for (const Waiting& waiting : batch) append_dispatch(merged, waiting.dispatch);
    computed = compute(layer, merged);
  }
  if (!computed && batch.size() > 1) {
    // One of them is to blame: each alone, so that only that one fails.
    while (!batch.empty()) {
      std::deque<Waiting> alone;
      alone.push_back(std::move(batch.front()));
      batch.pop_front();
      serve(std::move(alone));
    }
    return;
  }
  const std::uint64_t finished = now_ns();
  if (batch.size() > 1) merged_ += batch.size();
  std::size_t begin = 0;
  for (Waiting& waiting : batch) {
    waiting.header.finished_ns = finished;
    queue_ns_ += started - waiting.header.received_ns;
    if (!computed) {
      refuse(waiting.lane, waiting.header, computed.error());
      continue;
    }
    const std::size_t count = reply_values(waiting.dispatch);
    reply(waiting, std::span(rows_).subspan(begin, count));
    begin += count;
  }
}

/// Into rows_. A long run leaves the port to the listener, and takes what came meanwhile.
Result<void> LaneLoop::compute(std::int32_t layer, const Dispatch& dispatch) {
  const std::size_t num_pairs = dispatch.pairs.num_pairs();
  const bool listen = ns_per_pair_ == 0
                          ? num_pairs >= kListenFromPairs
                          : ns_per_pair_ * static_cast<double>(num_pairs) > kListenFromNs;
  const std::uint64_t began = now_ns();
  if (listen) listener_.begin();
  rows_.resize(reply_values(dispatch));
  const auto computed = dispatch.combine == CombineMode::kPerExpert
                            ? runner_.run_pairs(store_, layer, dispatch.hidden_size, dispatch.rows,
                                                dispatch.pairs, rows_)
                            : runner_.run_rows(store_, layer, dispatch.hidden_size, dispatch.rows,
                                               dispatch.pairs, rows_);
  const std::uint64_t took = now_ns() - began;
  if (listen) {
    for (Arrival& arrival : listener_.end()) take(std::move(arrival.event), arrival.received_ns);
  }
  if (!computed) return computed.error();
  ++batches_;
  pairs_ += num_pairs;
  compute_ns_ += took;
  if (num_pairs > 0) {
    const double last = static_cast<double>(took) / static_cast<double>(num_pairs);
    ns_per_pair_ = ns_per_pair_ == 0 ? last : 0.75 * ns_per_pair_ + 0.25 * last;
  }
  return {};
}

void LaneLoop::reply(const Waiting& waiting, std::span<const float> rows) {
  fabric::Header header = waiting.header;
  header.kind = fabric::Kind::kReply;
  send(waiting.lane, header, encode_rows(rows));
}

void LaneLoop::refuse(std::uint64_t lane, const fabric::Header& of, const Error& why) {
  log_error("layer {} of step {} of router {}: {}", of.layer, of.step, of.sender, why.message);
  ++refused_;
  fabric::Header header = of;
  header.kind = fabric::Kind::kError;
  std::string text(error_info(why.code).name);
  text += '\n';
  text += why.message;
  const auto bytes = std::as_bytes(std::span(text));
  send(lane, header, {bytes.begin(), bytes.end()});
}

void LaneLoop::send(std::uint64_t lane, fabric::Header header, std::vector<std::byte> payload) {
  header.sender = worker_id_;
  header.sent_ns = now_ns();
  ++dispatches_;
  if (auto sent = port_.send(lane, header, std::move(payload)); !sent)
    log_debug("lane {}: {}", lane, sent.error().message);
}

}  // namespace moiety
