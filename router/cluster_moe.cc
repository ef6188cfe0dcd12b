#include "router/cluster_moe.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/log.h"
#include "kernels/elementwise.h"
#include "router/choose_owners.h"

namespace moiety {
namespace {

// A wait is made of slices. One that took much longer than it should says that this process, or
// all of them, did not run: that is nobody's silence.
constexpr std::chrono::milliseconds kSlice{100};
constexpr std::chrono::milliseconds kOwnPause{20};
// Events taken before a step.
constexpr int kMaxPolled = 64;

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

std::chrono::nanoseconds between(std::uint64_t begin_ns, std::uint64_t end_ns) {
  return std::chrono::nanoseconds(end_ns > begin_ns ? end_ns - begin_ns : 0);
}

}  // namespace

ClusterMoe::ClusterMoe(std::unique_ptr<fabric::RouterLane> lane,
                       const ClusterMoeOptions& options,
                       SuspectCallback on_suspect)
    : lane_(std::move(lane)),
      options_(options),
      fleet_(options.connect_timeout, options.reply, std::move(on_suspect)) {
  if (options.local)
    local_ = std::make_unique<LocalExperts>(*options.local, [this] { interrupt(); });
}

ClusterMoe::~ClusterMoe() = default;

void ClusterMoe::attach(std::unique_ptr<fabric::RouterLane> lane, std::uint64_t router_id) {
  {
    const std::lock_guard lock(mutex_);
    MOIETY_CHECK(lane_ == nullptr, "a second lane");
    options_.router_id = router_id;
    lane_ = std::move(lane);
  }
  attached_.notify_all();
}

BackendStats ClusterMoe::stats() const {
  BackendStats stats = stats_;
  if (lane_ == nullptr) return stats;
  stats.bytes_sent = lane_->bytes_sent();
  stats.bytes_received = lane_->bytes_received();
  return stats;
}

HeldExperts ClusterMoe::held() const {
  if (local_ == nullptr) return {};
  return {local_->resident_experts(), local_->resident_bytes()};
}

void ClusterMoe::apply(const EpochView& view) {
  fleet_.apply(*lane_, view);
  const std::vector<ExpertId>& here = view.placement.router_experts;
  if (local_ == nullptr) {
    if (!here.empty())
      log_error("epoch {} wants routers to hold {} experts; this one cannot, so they are missing",
                view.placement.epoch.value, here.size());
    return;
  }
  if (!local_->loading() && local_->holds(here)) return;
  local_->load(view.placement.epoch, here);
  fleet_.await_local();
}

std::optional<std::vector<WorkerId>> ClusterMoe::applied() {
  if (lane_ == nullptr) return std::nullopt;
  if (local_ == nullptr) return fleet_.applied(*lane_);
  if (local_->take_loaded()) fleet_.set_local(local_->resident());
  auto lost = fleet_.applied(*lane_);
  if (lost && local_->resident_experts() > fleet_.placed_here().size()) {
    local_->keep_only(fleet_.placed_here());
    fleet_.set_local(fleet_.placed_here());
  }
  return lost;
}

void ClusterMoe::announce(const EpochView& view) {
  News news;
  news.placed = view.placement.workers();
  for (const WorkerEndpoint& endpoint : view.workers)
    news.incarnations[endpoint.id] = endpoint.incarnation;
  {
    const std::lock_guard lock(mutex_);
    news_ = std::move(news);
  }
  interrupt();
}

void ClusterMoe::interrupt() {
  {
    const std::lock_guard lock(mutex_);
    if (lane_ != nullptr) return lane_->interrupt();
    interrupted_before_lane_ = true;
  }
  attached_.notify_all();
}

void ClusterMoe::idle_wait(Deadline deadline) {
  {
    std::unique_lock lock(mutex_);
    if (lane_ == nullptr) {
      attached_.wait_until(lock, deadline,
                           [&] { return lane_ != nullptr || interrupted_before_lane_; });
      interrupted_before_lane_ = false;
      return;
    }
  }
  if (std::exchange(interrupted_, false)) return;
  handle(lane_->wait(std::min(deadline, fleet_.next_timer())));
  interrupted_ = false;  // whoever waited idly looks at everything now
  fleet_.retry(*lane_);
}

/// Takes what has happened since the last step: connections progress only where somebody waits.
void ClusterMoe::begin_step(std::uint64_t step) {
  step_ = step;
  rounds_.clear();
  fleet_.begin_step();
  for (int i = 0; i < kMaxPolled; ++i) {
    const fabric::Event event = lane_->wait(Clock::now());
    if (event.type == fabric::Event::Type::kTimeout) break;
    handle(event);
  }
  give_up_owing();
  fleet_.retry(*lane_);
}

void ClusterMoe::begin(const MoeLayerInput& input) {
  MOIETY_CHECK(flights_.size() < kMaxInFlight, "too many layers in flight");
  Flight& flight = flights_.emplace_back();
  flight.input = input;
  flight.row_failed.assign(size(input.num_rows), kRowFine);
  flight.sent_at = flight.last_reply = Clock::now();
  std::vector<std::uint32_t> slots;
  slots.reserve(input.topk_ids.size());
  for (std::size_t slot = 0; slot < input.topk_ids.size(); ++slot) {
    if (input.topk_ids[slot] >= 0) slots.push_back(static_cast<std::uint32_t>(slot));
  }
  dispatch(flight, slots, false);
  stats_.rows += size(input.num_rows);
  ++stats_.layers;
}

void ClusterMoe::row_missing(Flight& flight, std::size_t row, std::int32_t expert) {
  if (flight.row_failed[row] == kRowFine) flight.row_failed[row] = kRowMissing;
  const std::int32_t layer = flight.input.layer;
  const auto placed = fleet_.placed(layer, expert);
  failure_ = fail(ErrorCode::kWorkerLost,
                  "expert " + std::to_string(expert) + " of layer " + std::to_string(layer) +
                      (placed ? " was on worker " + std::to_string(placed->value) +
                                    ", which is lost; try again when it is back"
                       : fleet_.placed_here(layer, expert)
                           ? " is to be held by this router itself, which has not read it yet"
                           : " is on no worker of epoch " + std::to_string(fleet_.epoch().value)));
}

/// Chooses a worker for every slot (ascending). Rows that need an expert out of reach fail, and
/// their slots are left out of `kept`.
void ClusterMoe::assign(Flight& flight,
                        std::span<const std::uint32_t> slots,
                        std::vector<std::uint32_t>& kept,
                        std::vector<WorkerId>& chosen) {
  const MoeLayerInput& input = flight.input;
  const std::size_t top_k = size(input.top_k);
  std::vector<const std::vector<WorkerId>*> owners;
  std::vector<std::int32_t> experts;
  for (std::size_t begin = 0, end = 0; begin < slots.size(); begin = end) {
    const std::size_t row = slots[begin] / top_k;
    while (end < slots.size() && slots[end] / top_k == row) ++end;
    if (flight.row_failed[row] != kRowFine) continue;
    owners.clear();
    experts.clear();
    for (std::size_t i = begin; i < end; ++i) {
      experts.push_back(input.topk_ids[slots[i]]);
      owners.push_back(&fleet_.owners(input.layer, experts.back()));
      if (!owners.back()->empty()) continue;
      row_missing(flight, row, experts.back());
      break;
    }
    if (flight.row_failed[row] != kRowFine) continue;
    kept.insert(kept.end(), slots.begin() + static_cast<std::ptrdiff_t>(begin),
                slots.begin() + static_cast<std::ptrdiff_t>(end));
    chosen.resize(kept.size());
    choose_owners(owners, hash_experts(experts), std::span(chosen).last(owners.size()));
  }
}

/// Adds a pair to a part; slots come in ascending order.
void ClusterMoe::fill(Flight& flight, Part& part, std::uint32_t slot) {
  const MoeLayerInput& input = flight.input;
  const std::size_t hidden = size(input.hidden_size);
  const std::size_t row = slot / size(input.top_k);
  PairList& pairs = part.dispatch.pairs;
  if (part.rows.empty() || part.rows.back() != row) {
    part.rows.push_back(static_cast<std::uint32_t>(row));
    pairs.row_offsets.push_back(static_cast<std::uint32_t>(pairs.num_pairs()));
    const float* values = &input.rows[row * hidden];
    part.dispatch.rows.insert(part.dispatch.rows.end(), values, values + hidden);
  }
  pairs.experts.push_back(input.topk_ids[slot]);
  pairs.weights.push_back(input.topk_weights[slot]);
  part.slots.push_back(slot);
}

ClusterMoe::Part& ClusterMoe::add_part(Flight& flight, WorkerId worker, std::uint32_t round) {
  Part& part = flight.parts.emplace_back();
  part.worker = worker;
  part.dispatch.combine = options_.combine;
  part.dispatch.dtype = options_.dtype;
  part.dispatch.hidden_size = flight.input.hidden_size;
  part.header.kind = fabric::Kind::kDispatch;
  part.header.epoch = fleet_.epoch().value;
  part.header.step = step_;
  part.header.attempt = round;
  part.header.layer = static_cast<std::uint32_t>(flight.input.layer);
  part.header.sender = options_.router_id;
  if (worker == kThisRouter) {
    part.state = Part::State::kLocal;
  } else {
    part.header.incarnation = fleet_.workers().at(worker).incarnation;
  }
  return part;
}

/// Sends the pairs of these slots (ascending) to workers that are connected; those of experts that
/// are here are only noted.
void ClusterMoe::dispatch(Flight& flight, std::span<const std::uint32_t> slots, bool again) {
  std::vector<std::uint32_t> kept;
  std::vector<WorkerId> chosen;
  assign(flight, slots, kept, chosen);
  const std::uint64_t before = stats_.dispatches;
  send_parts(flight, kept, chosen, nullptr);
  if (again) stats_.redispatches += stats_.dispatches - before;
}

/// One part for each of `chosen` [slots], and its message; `hedge_of` as in Part.
void ClusterMoe::send_parts(Flight& flight,
                            std::span<const std::uint32_t> slots,
                            std::span<const WorkerId> chosen,
                            Part* hedge_of) {
  const std::size_t layer = size(flight.input.layer);
  std::map<WorkerId, Part*> parts;
  for (const WorkerId worker : chosen) parts[worker] = nullptr;
  if (rounds_.size() <= layer) rounds_.resize(layer + 1, 0);
  const std::uint32_t round = rounds_[layer]++;
  if (const auto here = parts.find(kThisRouter); here != parts.end())
    here->second = &add_part(flight, kThisRouter, round);
  for (auto& [worker, part] : parts) {
    if (part == nullptr) part = &add_part(flight, worker, round);
    part->hedge_of = hedge_of;
    part->hedged = hedge_of != nullptr;
  }
  for (std::size_t i = 0; i < slots.size(); ++i) fill(flight, *parts[chosen[i]], slots[i]);
  std::vector<WorkerId> gone;
  for (auto& [worker, part] : parts) {
    PairList& pairs = part->dispatch.pairs;
    pairs.row_offsets.push_back(static_cast<std::uint32_t>(pairs.num_pairs()));
    if (part->state == Part::State::kLocal) {
      stats_.local_pairs += pairs.num_pairs();
      continue;
    }
    part->sent_at = Clock::now();
    part->overdue = part->sent_at + fleet_.allowed(worker, part->rows.size());
    const auto hedge_after = fleet_.hedge_after(part->rows.size());
    if (hedge_after) part->hedge_at = part->sent_at + *hedge_after;
    ++flight.num_open;
    if (!lane_->send(worker.value, part->header, encode_dispatch(part->dispatch))) {
      gone.push_back(worker);
      continue;
    }
    ++stats_.dispatches;
    stats_.row_copies += part->rows.size();
  }
  for (const WorkerId worker : gone)
    lose(worker, Fleet::Loss::kConnection, "a message could not be sent to it");
}

void ClusterMoe::take_news() {
  std::optional<News> news;
  {
    const std::lock_guard lock(mutex_);
    news.swap(news_);
  }
  if (!news) return;
  std::vector<std::pair<WorkerId, std::string>> gone;
  for (const auto& [id, worker] : fleet_.workers()) {
    if (!fleet_.connected(id)) continue;
    const auto found = news->incarnations.find(id);
    if (found == news->incarnations.end()) {
      if (news->placed.contains(id)) gone.emplace_back(id, "the next epoch is without it");
    } else if (found->second != worker.incarnation) {
      gone.emplace_back(id, "the next epoch has another incarnation of it");
    }
  }
  for (const auto& [id, why] : gone) {
    log_info("worker {} is dropped: {}", id.value, why);
    lose(id, Fleet::Loss::kEpoch, why);
  }
}

void ClusterMoe::handle(const fabric::Event& event) {
  const WorkerId worker{static_cast<std::uint32_t>(event.peer)};
  switch (event.type) {
    case fabric::Event::Type::kMessage:
      for (Flight& flight : flights_) {
        for (Part& part : flight.parts) {
          if (part.worker != worker || part.state != Part::State::kOpen ||
              !event.header.answers(part.header))
            continue;
          return take_reply(flight, part, event);
        }
      }
      fleet_.settle(worker, event.header);
      ++stats_.stale_dropped;
      return;
    case fabric::Event::Type::kConnected:
      return fleet_.on_connected(worker);
    case fabric::Event::Type::kPeerLost:
      if (fleet_.connected(worker)) ++stats_.lost[Fleet::name(Fleet::Loss::kConnection)];
      fleet_.on_lost(worker, event.error);
      return ask_others(worker);
    case fabric::Event::Type::kInterrupted:
      interrupted_ = true;
      return take_news();
    case fabric::Event::Type::kTimeout:
      return;
  }
}

void ClusterMoe::take_error(Flight& flight, Part& part, const fabric::Event& event) {
  const std::string text(reinterpret_cast<const char*>(event.payload.data()), event.payload.size());
  const std::size_t line = std::min(text.find('\n'), text.size());
  const std::string why = line < text.size() ? text.substr(line + 1) : text;
  const WorkerId worker = part.worker;
  if (error_code_from_name(text.substr(0, line)) != ErrorCode::kInvalidArgument)
    return lose(worker, Fleet::Loss::kRefused, why);
  // The message itself is wrong for it: nobody else would take it, and nothing is lost.
  failure_ = fail(ErrorCode::kUnavailable,
                  "worker " + std::to_string(worker.value) + " could not compute layer " +
                      std::to_string(event.header.layer) + " (" + why + ")");
  close(flight, part, Part::State::kDead);
  drop_hedges(flight, part.hedge_of != nullptr ? *part.hedge_of : part);
  for (const std::uint32_t row : part.rows) flight.row_failed[row] = kRowRefused;
}

void ClusterMoe::take_reply(Flight& flight, Part& part, const fabric::Event& event) {
  if (event.header.kind == fabric::Kind::kError) return take_error(flight, part, event);
  const std::size_t rows =
      options_.combine == CombineMode::kPerExpert ? part.slots.size() : part.rows.size();
  part.reply.resize(rows * size(flight.input.hidden_size));
  if (auto decoded = decode_rows(event.payload, part.reply); !decoded)
    return lose(part.worker, Fleet::Loss::kRefused, decoded.error().message);
  close(flight, part, Part::State::kDone);
  flight.last_reply = Clock::now();
  flight.slowest = &part;
  flight.slowest_stamps = event.header;
  fleet_.add_time(part.worker, part.rows.size(), flight.last_reply - part.sent_at);
  if (part.hedge_of != nullptr) {
    settle_hedges(flight, *part.hedge_of);
  } else {
    drop_hedges(flight, part);
  }
}

/// What this router computes itself, while the others do their part.
void ClusterMoe::run_local(Flight& flight) {
  for (Part& part : flight.parts) {
    if (part.state != Part::State::kLocal) continue;
    const std::size_t rows =
        options_.combine == CombineMode::kPerExpert ? part.slots.size() : part.rows.size();
    part.reply.resize(rows * size(flight.input.hidden_size));
    part.state = Part::State::kDone;
    if (auto done = local_->run(flight.input.layer, part.dispatch, part.reply); !done) {
      failure_ = done.error();
      part.state = Part::State::kDead;
      for (const std::uint32_t row : part.rows) flight.row_failed[row] = kRowRefused;
    }
  }
}

void ClusterMoe::await(Flight& flight) {
  if (flight.num_open == 0) return;
  const Clock::time_point began = Clock::now();
  for (Part& part : flight.parts) part.postpone(began - part.sent_at);
  while (flight.num_open > 0) {
    Deadline until = Clock::now() + kSlice;
    for (const Part& part : flight.parts) {
      if (part.state != Part::State::kOpen) continue;
      until = std::min(until, part.hedged ? part.overdue : part.hedge_at.value_or(part.overdue));
    }
    const fabric::Event event = lane_->wait(until);
    const Clock::time_point now = Clock::now();
    if (now > until + kOwnPause) {
      for (Part& part : flight.parts) part.postpone(now - until);
      fleet_.postpone_owed(now - until);
    }
    looked_at_ = now;
    if (event.type == fabric::Event::Type::kTimeout) {
      hedge_late(flight, now);
      give_up_silent(flight, now);
      fleet_.retry(*lane_);
    } else {
      handle(event);
    }
  }
  stats_.blocked += Clock::now() - began;
}

void ClusterMoe::combine_per_worker(const Flight& flight, std::span<float> y) {
  const std::size_t hidden = size(flight.input.hidden_size);
  for (const Part& part : flight.parts) {
    if (part.state != Part::State::kDone) continue;
    for (std::size_t i = 0; i < part.rows.size(); ++i)
      kernels::add(y.subspan(part.rows[i] * hidden, hidden), &part.reply[i * hidden]);
  }
}

void ClusterMoe::combine_per_expert(const Flight& flight, std::span<float> y) {
  const std::size_t hidden = size(flight.input.hidden_size);
  const std::size_t top_k = size(flight.input.top_k);
  std::vector<const float*> row_of_slot(size(flight.input.num_rows) * top_k, nullptr);
  for (const Part& part : flight.parts) {
    if (part.state != Part::State::kDone) continue;
    for (std::size_t i = 0; i < part.slots.size(); ++i)
      row_of_slot[part.slots[i]] = &part.reply[i * hidden];
  }
  // The same additions in the same order as ExpertRunner::run_rows: from zero, slot by slot.
  for (std::size_t i = 0; i < row_of_slot.size(); ++i) {
    if (row_of_slot[i] != nullptr)
      kernels::add(y.subspan(i / top_k * hidden, hidden), row_of_slot[i]);
  }
}

void ClusterMoe::count_wait(const Flight& flight) {
  if (flight.slowest == nullptr) return;
  const fabric::Header& stamps = flight.slowest_stamps;
  const std::chrono::nanoseconds wait = flight.last_reply - flight.sent_at;
  const std::chrono::nanoseconds there =
      std::min(wait, between(stamps.received_ns, stamps.sent_ns));
  stats_.wait += wait;
  stats_.network += wait - there;
  stats_.queue += std::min(there, between(stamps.received_ns, stamps.started_ns));
  stats_.compute += std::min(there, between(stamps.started_ns, stamps.finished_ns));
  ++stats_.slowest[flight.slowest->worker];
}

void ClusterMoe::finish(std::span<float> y, std::span<std::uint8_t> failed) {
  MOIETY_CHECK(!flights_.empty(), "no layer was begun");
  Flight& flight = flights_.front();
  run_local(flight);
  await(flight);
  count_wait(flight);
  const std::size_t hidden = size(flight.input.hidden_size);
  std::fill(y.begin(), y.end(), 0.0f);
  if (options_.combine == CombineMode::kPerExpert) {
    combine_per_expert(flight, y);
  } else {
    combine_per_worker(flight, y);
  }
  for (std::size_t row = 0; row < flight.row_failed.size(); ++row) {
    if (flight.row_failed[row] == kRowFine) continue;
    failed[row] = std::max(failed[row], flight.row_failed[row]);
    std::fill_n(&y[row * hidden], hidden, 0.0f);
  }
  flights_.pop_front();
}

}  // namespace moiety
