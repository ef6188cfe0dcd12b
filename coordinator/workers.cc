// What each worker should hold, whether it lives, and which view the routers get.
#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

#include "coordinator/state.h"

namespace moiety::coordinator {

namespace {

/// A worker that was ready to serve is started again at once, so many times within so long. One
/// that was not, or is lost more often (it may be what it computes that ends it), waits, each time
/// longer.
constexpr std::size_t kRestartsAtOnce = 5;
constexpr std::chrono::seconds kRecent{10};
/// A change gives up when a worker ends this often in a row before it is ready.
constexpr int kMaxFailures = 5;

bool includes(const std::vector<ExpertId>& all, const std::vector<ExpertId>& some) {
  return std::includes(all.begin(), all.end(), some.begin(), some.end());
}

/// Sorted and without duplicates only after all was added.
void add(const std::vector<std::vector<ExpertId>>& placed,
         std::vector<std::vector<ExpertId>>& needed) {
  for (std::size_t index = 0; index < placed.size(); ++index) {
    needed[index].insert(needed[index].end(), placed[index].begin(), placed[index].end());
  }
}

}  // namespace

void ClusterState::reconcile() {
  prune_history();
  if (shutting_down_) {
    advance_shutdown();
  } else {
    choose_stand_ins();
    advance_change();
    supervise_workers();
  }
  refresh_view();
}

std::vector<ClusterState::Experts> ClusterState::needed_experts() const {
  std::vector<Experts> needed(workers_.size());
  const EpochView* previous = nullptr;
  for (const EpochView& view : history_) {
    const bool same = previous != nullptr && previous->workers == view.workers &&
                      previous->placement.owners == view.placement.owners;
    previous = &view;
    if (same) continue;
    // Routers ask only whom the view names: not one that was lost, nor who took its place.
    std::vector<Experts> placed = placed_experts(view.placement);
    for (std::uint32_t index = 0; index < workers_.size(); ++index) {
      const Worker& each = workers_[index];
      const auto is_it = [&](const WorkerEndpoint& named) {
        return named.id.value == index && named.incarnation == each.incarnation;
      };
      if (each.process != Worker::Process::kRunning ||
          std::none_of(view.workers.begin(), view.workers.end(), is_it)) {
        placed[index].clear();
      }
    }
    add(placed, needed);
  }
  // The published view may have been without those that come back.
  add(placed_experts(current_.placement), needed);
  for (const auto& [expert, stand_in] : stand_ins_) needed[stand_in.value].push_back(expert);
  if (change_ && change_->phase != Phase::kSettling) {
    add(placed_experts(change_->saved.placement), needed);
    if (change_->phase == Phase::kLoading || change_->phase == Phase::kActivating)
      add(placed_experts(change_->target.placement), needed);
  }
  for (Experts& experts : needed) {
    std::sort(experts.begin(), experts.end());
    experts.erase(std::unique(experts.begin(), experts.end()), experts.end());
  }
  return needed;
}

bool ClusterState::serves(WorkerId id) const {
  const Worker& each = worker(id);
  if (each.process != Worker::Process::kRunning) return false;
  if (config_.static_fleet && now_ < each.restart_at) return false;  // it was suspected
  return each.connection || each.expected;
}

bool ClusterState::usable(WorkerId id) const {
  const Worker& each = worker(id);
  if (each.retired) return false;
  return !config_.static_fleet || (each.connection && serves(id));
}

bool ClusterState::holds(WorkerId id, const Experts& experts) const {
  return serves(id) && includes(worker(id).resident, experts);
}

bool ClusterState::usage_known() const {
  if (now_ < peers_back_at_ && !history_.empty()) return false;
  return std::all_of(routers_.begin(), routers_.end(), [this](const auto& entry) {
    const Epoch oldest = entry.second.oldest;
    return oldest.value == 0 || history_.empty() || oldest >= history_.front().placement.epoch;
  });
}

std::uint64_t ClusterState::bytes_of(const Experts& experts) const {
  std::uint64_t bytes = 0;
  for (ExpertId id : experts) {
    bytes += config_.model.layers[static_cast<std::size_t>(id.layer)].expert_bytes;
  }
  return bytes;
}

std::uint64_t ClusterState::capacity_of(WorkerId id) const {
  const std::uint64_t own = worker(id).hello.capacity_bytes;
  return own != 0 ? own : config_.capacity_bytes;
}

std::uint64_t ClusterState::limit_of(WorkerId id) const {
  std::uint64_t per_layer = 0;
  for (const auto& layer : config_.model.layers) {
    per_layer += layer.expert_bytes *
                 static_cast<std::uint64_t>(std::min(config_.capacity_per_layer, layer.num_routed));
  }
  std::uint64_t capacity = capacity_of(id);
  if (config_.capacity_per_layer > 0 && (capacity == 0 || per_layer < capacity))
    capacity = per_layer;
  return static_cast<std::uint64_t>(static_cast<double>(capacity) * (1 + config_.move_headroom));
}

void ClusterState::supervise_workers() {
  const std::vector<Experts> needed = needed_experts();
  for (std::uint32_t index = 0; index < workers_.size(); ++index) {
    supervise(WorkerId{index}, needed[index]);
  }
}

void ClusterState::supervise(WorkerId id, const Experts& needed) {
  Worker& each = worker(id);
  if (needed.empty()) {
    each.lost = each.parked = false;
    if (each.process != Worker::Process::kRunning) {
      each.failures = 0;
      each.backoff = {};
      each.restart_at = {};
      return;
    }
    if (!usage_known()) return;
    if (config_.static_fleet) {
      if (each.connection && !each.may_hold.empty()) drop_others(id, needed);
      return;
    }
    note(LogLevel::kInfo,
         fmt::format("stopping worker {}: no deployment needs its experts", id.value));
    each.process = Worker::Process::kStopping;
    act(StopWorker{id, each.incarnation});
    return;
  }
  if (each.process == Worker::Process::kNone && !config_.static_fleet && !each.parked &&
      now_ >= each.restart_at) {
    return start_worker(id, needed.size());
  }
  if (each.process != Worker::Process::kRunning || !each.connection) return;

  // First what makes room, then what needs it; a worker does them in this order.
  if (!includes(needed, each.may_hold) && usage_known()) drop_others(id, needed);
  if (includes(each.resident, needed) && !each.loading) return;
  if (each.loading && includes(each.load_set, needed)) return;
  if (now_ < each.load_again_at) return;
  request_load(id, needed);
}

void ClusterState::start_worker(WorkerId id, std::size_t num_experts) {
  Worker& each = worker(id);
  each.process = Worker::Process::kRunning;
  each.incarnation = ++incarnation_counter_;
  each.identity = {};
  each.started = now_;
  if (each.lost) ++worker_restarts_;
  note(LogLevel::kInfo, fmt::format("starting worker {} (incarnation {}) for {} experts{}",
                                    id.value, each.incarnation, num_experts,
                                    each.lost ? ", again after: " + each.last_loss : ""));
  act(StartWorker{id, each.incarnation});
}

void ClusterState::drop_others(WorkerId id, const Experts& needed) {
  Worker& each = worker(id);
  const auto keep = [&needed](const Experts& held) {
    Experts kept;
    std::set_intersection(held.begin(), held.end(), needed.begin(), needed.end(),
                          std::back_inserter(kept));
    return kept;
  };
  Experts kept = keep(each.may_hold);
  const std::size_t dropped = each.may_hold.size() - kept.size();
  if (dropped > 0) {
    note(LogLevel::kInfo,
         fmt::format("worker {} drops {} experts that no router uses any more", id.value, dropped));
  }
  const Epoch epoch = published() != nullptr ? published()->placement.epoch : Epoch{};
  act(Send{*each.connection, proto::DropExperts{epoch, kept}});
  each.may_hold = std::move(kept);
  each.resident = keep(each.resident);
  each.load_set = keep(each.load_set);
  each.stats_due = true;
}

void ClusterState::request_load(WorkerId id, const Experts& needed) {
  Worker& each = worker(id);
  // The number tells this request's answer from those of earlier requests on the same connection.
  const bool for_change =
      change_ && change_->phase == Phase::kLoading && change_->epoch > each.load_epoch;
  each.load_epoch = for_change ? change_->epoch : Epoch{++epoch_counter_};
  each.load_sent = now_;
  each.loading = true;
  each.load_is_late = false;
  each.load_set = needed;
  each.load_again_at = {};
  act(Send{*each.connection, proto::LoadExperts{each.load_epoch, needed}});
  Experts may_hold;
  std::set_union(each.may_hold.begin(), each.may_hold.end(), needed.begin(), needed.end(),
                 std::back_inserter(may_hold));
  each.may_hold = std::move(may_hold);
}

void ClusterState::forget(Worker& gone) {
  if (gone.connection) {
    act(CloseConnection{*gone.connection});
    worker_connections_.erase(*gone.connection);
    gone.connection.reset();
  }
  gone.expected = false;
  // A worker of a static fleet has the same capacity when it comes back.
  const std::uint64_t capacity = config_.static_fleet ? gone.hello.capacity_bytes : 0;
  gone.hello = {};
  gone.hello.capacity_bytes = capacity;
  gone.stats = {};
  gone.may_hold.clear();
  gone.resident.clear();
  gone.load_set.clear();
  gone.load_epoch = {};
  gone.load_again_at = {};
  gone.loading = false;
  gone.suspicion.reset();
  gone.contenders.clear();
  gone.stats_due = false;
}

void ClusterState::lose_worker(WorkerId id, const std::string& why) {
  Worker& lost = worker(id);
  const bool was_ready = !lost.resident.empty();
  std::erase_if(lost.recent_losses, [&](Clock::time_point at) { return now_ - at > kRecent; });
  lost.recent_losses.push_back(now_);
  const bool at_once = was_ready && lost.recent_losses.size() <= kRestartsAtOnce;
  forget(lost);
  if (lost.process == Worker::Process::kRunning) {
    if (config_.static_fleet) {
      // Nobody can fence it; routers drop its answers, because they name the old epoch.
      lost.process = Worker::Process::kNone;
      ++fleet_version_;
      fleet_changed_at_ = now_;
    } else {
      lost.process = Worker::Process::kKilled;
      act(KillWorker{id, lost.incarnation});
    }
  }
  if (at_once) {
    lost.backoff = {};
  } else {
    // Requests wait for one that comes back and serves, however often it is lost.
    const auto most = was_ready ? 2 * config_.first_backoff : config_.max_backoff;
    lost.backoff =
        lost.backoff.count() == 0 ? config_.first_backoff : std::min(lost.backoff * 2, most);
  }
  lost.restart_at = now_ + lost.backoff;
  lost.lost = true;
  lost.parked = !config_.restart_workers && !config_.static_fleet;
  lost.last_loss = why;
  ++lost.losses;
  ++worker_losses_;
  if (!was_ready) ++lost.failures;
  durable_changed_ = true;
  const std::string then =
      config_.static_fleet ? std::string("others take its experts over")
      : lost.parked        ? std::string("it stays away until the next change")
      : lost.backoff.count() == 0
          ? std::string("starting it again at once")
          : fmt::format("starting it again in {} ms, because {}", lost.backoff.count(),
                        was_ready ? fmt::format("it was lost {} times in {} s",
                                                lost.recent_losses.size(), kRecent.count())
                                  : std::string("it was not ready to serve before"));
  note(LogLevel::kWarning, fmt::format("worker {} (incarnation {}) is lost: {}; {}", id.value,
                                       lost.incarnation, why, then));
  dirty_ = true;
  for (auto it = stand_ins_.begin(); it != stand_ins_.end();) {
    it = it->second == id ? stand_ins_.erase(it) : std::next(it);
  }
  lose_for_change(id, why);
}

void ClusterState::lose_for_change(WorkerId id, const std::string& why) {
  if (!change_ || change_->failure || change_->phase != Phase::kLoading ||
      !change_->target.placement.workers().contains(id)) {
    return;
  }
  const Worker& lost = worker(id);
  if (config_.static_fleet) {
    // It may not come back: the same change over those that are left.
    if (++change_->plans_dropped > kMaxPlansDropped) {
      change_->failure = fail(ErrorCode::kWorkerLost,
                              fmt::format("workers were lost {} times while it was done, at last "
                                          "worker {}: {}",
                                          change_->plans_dropped, id.value, why));
      return;
    }
    note(LogLevel::kWarning, fmt::format("planning anew without worker {}", id.value));
    change_->phase = Phase::kGathering;
  } else if (lost.parked) {
    change_->failure =
        fail(ErrorCode::kWorkerLost, fmt::format("worker {} is lost: {}", id.value, why));
  } else if (lost.failures >= kMaxFailures) {
    change_->failure =
        fail(ErrorCode::kUnavailable,
             fmt::format("worker {} ended {} times in a row before it was ready, at last: {}; "
                         "its log says more",
                         id.value, lost.failures, why));
  }
}

void ClusterState::check_worker_deadlines() {
  for (std::uint32_t index = 0; index < workers_.size(); ++index) {
    const WorkerId id{index};
    const Worker& each = worker(id);
    if (each.process == Worker::Process::kNone) {
      if (each.lost && !each.parked && now_ >= each.restart_at) dirty_ = true;
      continue;
    }
    // A suspected worker of a static fleet may be used again.
    if (config_.static_fleet && each.connection && each.lost && now_ >= each.restart_at) {
      dirty_ = true;
    }
    if (each.load_again_at != Clock::time_point{} && now_ >= each.load_again_at) dirty_ = true;
    if (each.process != Worker::Process::kRunning) continue;
    const auto silent =
        std::chrono::duration_cast<std::chrono::milliseconds>(now_ - each.last_heard);
    if (!each.connection) {
      if (each.expected ? now_ >= peers_back_at_ : now_ - each.started > config_.start_timeout)
        lose_worker(id, each.expected ? "it did not come back after the coordinator's restart"
                                      : "it did not connect in time");
    } else if (silent > config_.lease_ttl) {
      lose_worker(id, fmt::format("its lease lapsed: silent for {} ms", silent.count()));
    } else if (each.loading && each.resident.empty() &&
               now_ - each.load_sent > config_.operation_timeout) {
      lose_worker(id, "it did not load its experts in time");
    } else if (each.loading && !each.load_is_late &&
               now_ - each.load_sent > config_.operation_timeout) {
      // What it holds it serves, and its heartbeats come: slow storage is no reason to end it.
      worker(id).load_is_late = true;
      note(LogLevel::kWarning,
           fmt::format("worker {} still loads experts after {} s; it goes on serving what it holds",
                       id.value, config_.operation_timeout.count() / 1000));
    } else {
      look_into_suspicion(id);
    }
  }
}

}  // namespace moiety::coordinator
