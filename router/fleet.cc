#include "router/fleet.h"

#include <algorithm>
#include <bit>

#include "common/log.h"

namespace moiety {
namespace {

constexpr std::chrono::milliseconds kFirstRetry{100};
constexpr std::chrono::milliseconds kSlowestConnect{2000};
constexpr std::chrono::milliseconds kSlowestRetry{60000};

const std::vector<WorkerId> kNobody;

const std::vector<WorkerId>& at(const std::vector<std::vector<std::vector<WorkerId>>>& table,
                                std::size_t layer,
                                std::size_t expert) {
  if (layer >= table.size() || expert >= table[layer].size()) return kNobody;
  return table[layer][expert];
}

}  // namespace

const char* Fleet::name(Loss loss) {
  switch (loss) {
    case Loss::kConnection:
      return "connection";
    case Loss::kUntried:
      return "untried";
    case Loss::kSilent:
      return "silent";
    case Loss::kRefused:
      return "refused";
    case Loss::kEpoch:
      return "epoch";
  }
  return "";
}

Fleet::Fleet(std::chrono::milliseconds connect_timeout,
             const ReplyLimits& limits,
             SuspectCallback on_suspect)
    : connect_timeout_(connect_timeout), limits_(limits), on_suspect_(std::move(on_suspect)) {}

void Fleet::connect(fabric::RouterLane& lane, WorkerId id, Worker& worker) {
  worker.state = Worker::State::kConnecting;
  worker.untried = false;
  lane.connect(worker.address, id.value, worker.incarnation, Clock::now() + connect_timeout_);
}

void Fleet::apply(fabric::RouterLane& lane, const EpochView& view) {
  target_ = view.placement;
  switching_ = true;
  local_awaited_ = false;
  switch_until_ = Clock::now() + connect_timeout_;
  const std::set<WorkerId> placed = target_.workers();
  missing_ = placed;
  std::map<WorkerId, const WorkerEndpoint*> wanted;
  for (const WorkerEndpoint& endpoint : view.workers) {
    wanted[endpoint.id] = &endpoint;
    missing_.erase(endpoint.id);
  }
  for (auto it = workers_.begin(); it != workers_.end();) {
    const auto found = wanted.find(it->first);
    const bool same = found != wanted.end() &&
                      found->second->incarnation == it->second.incarnation &&
                      found->second->lane_address == it->second.address;
    const bool keep =
        same || (found == wanted.end() && !placed.contains(it->first) && connected(it->first));
    if (!keep) {
      lane.disconnect(it->first.value);
      it = workers_.erase(it);
      continue;
    }
    it->second.retiring = !same;
    ++it;
  }
  for (const auto& [id, endpoint] : wanted) {
    Worker& worker = workers_[id];
    worker.incarnation = endpoint->incarnation;
    worker.address = endpoint->lane_address;
    worker.awaited = worker.state != Worker::State::kConnected;
    if (worker.state == Worker::State::kDown) connect(lane, id, worker);
  }
  rebuild_routes();
}

std::optional<std::vector<WorkerId>> Fleet::applied(fabric::RouterLane& lane) {
  if (!switching_ || local_awaited_) return std::nullopt;
  const bool all_known = std::none_of(workers_.begin(), workers_.end(), [](const auto& entry) {
    return entry.second.awaited && entry.second.state == Worker::State::kConnecting;
  });
  if (!all_known && Clock::now() < switch_until_) return std::nullopt;
  switching_ = false;
  std::vector<WorkerId> lost(missing_.begin(), missing_.end());
  base_incarnations_.clear();
  for (auto it = workers_.begin(); it != workers_.end();) {
    Worker& worker = it->second;
    worker.awaited = false;
    if (worker.retiring) {
      lane.disconnect(it->first.value);
      it = workers_.erase(it);
      continue;
    }
    if (worker.state != Worker::State::kConnected && !worker.untried) lost.push_back(it->first);
    base_incarnations_[it->first] = worker.incarnation;
    ++it;
  }
  std::sort(lost.begin(), lost.end());
  base_ = target_;
  rebuild_routes();
  return lost;
}

void Fleet::set_local(std::vector<ExpertId> experts) {
  local_ = {experts.begin(), experts.end()};
  local_awaited_ = false;
  rebuild_routes();
}

void Fleet::on_connected(WorkerId id) {
  const auto it = workers_.find(id);
  if (it == workers_.end()) return;
  it->second.state = Worker::State::kConnected;
  it->second.suspected = false;
  log_info("connected to worker {} of incarnation {}", id.value, it->second.incarnation);
  rebuild_routes();
}

void Fleet::suspect(WorkerId id, Worker& worker, const std::string& why) {
  if (worker.suspected) return;
  worker.suspected = true;
  log_warning("worker {} is out of reach: {}", id.value, why);
  if (on_suspect_) on_suspect_(id, worker.incarnation, why);
}

void Fleet::down(WorkerId id, Worker& worker, Loss how, const std::string& why) {
  const bool was_connected = worker.state == Worker::State::kConnected;
  worker.state = Worker::State::kDown;
  worker.owed.reset();
  worker.backoff = std::clamp(
      worker.backoff * 2, kFirstRetry,
      how == Loss::kConnection || how == Loss::kUntried ? kSlowestConnect : kSlowestRetry);
  worker.retry = Clock::now() + worker.backoff;
  if (was_connected) rebuild_routes();
  worker.untried = how == Loss::kUntried;
  if (worker.untried) return log_warning("worker {} cannot be connected to: {}", id.value, why);
  if (how != Loss::kEpoch) return suspect(id, worker, why);
  worker.retry = Clock::time_point::max();
  worker.suspected = true;
}

void Fleet::on_lost(WorkerId id, const Error& why) {
  const auto it = workers_.find(id);
  if (it == workers_.end()) return;
  const bool untried = why.code == ErrorCode::kResourceExhausted;
  down(id, it->second, untried ? Loss::kUntried : Loss::kConnection, why.message);
  // Another process answers there: this incarnation is not coming back.
  if (why.code == ErrorCode::kLeaseLost) it->second.retry = Clock::time_point::max();
}

void Fleet::lose(fabric::RouterLane& lane, WorkerId id, Loss how, const std::string& why) {
  const auto it = workers_.find(id);
  if (it == workers_.end()) return;
  lane.disconnect(id.value);
  down(id, it->second, how, why);
}

void Fleet::retry(fabric::RouterLane& lane) {
  const auto now = Clock::now();
  for (auto& [id, worker] : workers_) {
    if (worker.state == Worker::State::kDown && !worker.retiring && now >= worker.retry)
      connect(lane, id, worker);
  }
}

Deadline Fleet::next_timer() const {
  Deadline next = switching_ && !local_awaited_ ? switch_until_ : Deadline::max();
  for (const auto& [id, worker] : workers_) {
    if (worker.state == Worker::State::kDown && !worker.retiring)
      next = std::min(next, worker.retry);
  }
  return next;
}

bool Fleet::connected(WorkerId id) const {
  const auto it = workers_.find(id);
  return it != workers_.end() && it->second.state == Worker::State::kConnected;
}

bool Fleet::is_of_base(WorkerId id) const {
  const auto it = base_incarnations_.find(id);
  return it != base_incarnations_.end() && it->second == workers_.at(id).incarnation;
}

void Fleet::rebuild_routes() {
  const auto before = std::move(routes_);
  bool gained = false;
  routes_.assign(std::max(base_.owners.size(), target_.owners.size()), {});
  for (std::size_t layer = 0; layer < routes_.size(); ++layer) {
    std::size_t experts = 0;
    for (const Placement* placement : {&base_, &target_}) {
      if (layer < placement->owners.size())
        experts = std::max(experts, placement->owners[layer].size());
    }
    routes_[layer].resize(experts);
    for (std::size_t expert = 0; expert < experts; ++expert) {
      std::vector<WorkerId>& route = routes_[layer][expert];
      if (local_.contains({static_cast<std::int32_t>(layer), static_cast<std::int32_t>(expert)}))
        route.push_back(kThisRouter);
      for (const Placement* placement : {&target_, &base_}) {
        if (!route.empty()) break;
        bool punctual = false;
        for (const WorkerId owner : at(placement->owners, layer, expert)) {
          if (!connected(owner)) continue;
          if (placement == &base_ && !is_of_base(owner)) continue;
          route.push_back(owner);
          punctual = punctual || !workers_.at(owner).owed;
        }
        if (punctual)
          std::erase_if(route, [&](WorkerId owner) { return workers_.at(owner).owed.has_value(); });
      }
      gained = gained || (!route.empty() && at(before, layer, expert).empty());
    }
  }
  if (gained) ++gained_;
}

const std::vector<WorkerId>& Fleet::owners(std::int32_t layer, std::int32_t expert) const {
  return at(routes_, static_cast<std::size_t>(layer), static_cast<std::size_t>(expert));
}

std::optional<WorkerId> Fleet::placed(std::int32_t layer, std::int32_t expert) const {
  const auto& owners =
      at(target_.owners, static_cast<std::size_t>(layer), static_cast<std::size_t>(expert));
  if (owners.empty()) return std::nullopt;
  return owners.front();
}

bool Fleet::placed_here(std::int32_t layer, std::int32_t expert) const {
  const auto& here = target_.router_experts;
  return std::binary_search(here.begin(), here.end(), ExpertId{layer, expert});
}

ReachableExperts Fleet::reachable() const {
  ReachableExperts reachable;
  for (const auto& layer : routes_) {
    reachable.emplace_back();
    for (const auto& owners : layer) reachable.back().push_back(owners.empty() ? 0 : 1);
  }
  return reachable;
}

void Fleet::add_time(WorkerId id, std::size_t rows, std::chrono::nanoseconds time) {
  const auto it = workers_.find(id);
  if (it == workers_.end()) return;
  it->second.times.add(rows, time);
  it->second.backoff = std::chrono::milliseconds(0);  // it works
  all_times_.add(rows, time);
}

void Fleet::add_silence(WorkerId id, std::size_t rows, std::chrono::nanoseconds time) {
  const auto it = workers_.find(id);
  if (it != workers_.end()) it->second.times.add(rows, time);
}

std::chrono::nanoseconds Fleet::allowed(WorkerId id, std::size_t rows) const {
  const auto it = workers_.find(id);
  if (it != workers_.end() && it->second.times.p99(rows).count() > 0)
    return it->second.times.allowed(rows, limits_);
  return all_times_.allowed(rows, limits_);
}

std::optional<std::chrono::nanoseconds> Fleet::hedge_after(std::size_t rows) {
  auto& known = hedge_after_[static_cast<std::size_t>(std::bit_width(rows))];
  if (known) return known;
  std::vector<const ReplyTimes*> times;
  for (const auto& [id, worker] : workers_) times.push_back(&worker.times);
  known = moiety::hedge_after(times, rows, limits_);
  if (known) return known;
  // Too few replies of any one worker.
  const ReplyTimes* all[] = {&all_times_};
  return moiety::hedge_after(all, rows, limits_);
}

void Fleet::owes(WorkerId id, const Owed& owed) {
  const auto it = workers_.find(id);
  if (it == workers_.end() || it->second.state != Worker::State::kConnected || it->second.owed)
    return;
  it->second.owed = owed;
  rebuild_routes();
}

void Fleet::settle(WorkerId id, const fabric::Header& header) {
  const auto it = workers_.find(id);
  if (it == workers_.end() || !it->second.owed || !header.answers(it->second.owed->header)) return;
  it->second.times.add(it->second.owed->rows, Clock::now() - it->second.owed->sent_at);
  it->second.owed.reset();
  rebuild_routes();
}

void Fleet::postpone_owed(Clock::duration by) {
  for (auto& [id, worker] : workers_) {
    if (worker.owed) worker.owed->overdue += by;
  }
}

std::vector<std::pair<WorkerId, std::chrono::nanoseconds>> Fleet::overdue(
    Clock::time_point now) const {
  std::vector<std::pair<WorkerId, std::chrono::nanoseconds>> late;
  for (const auto& [id, worker] : workers_) {
    if (worker.owed && now >= worker.owed->overdue)
      late.emplace_back(id, now - worker.owed->sent_at);
  }
  return late;
}

}  // namespace moiety
