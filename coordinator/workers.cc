// What each worker should hold, whether it lives, and which view the routers get.
#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

#include "coordinator/state.h"

namespace moiety::coordinator {

namespace {

/// A worker that served this long before it ended is restarted without a longer wait than the
/// first.
constexpr std::chrono::seconds kHealthyAfter{10};
/// A change gives up when a worker ends this often in a row before it is ready.
constexpr int kMaxFailures = 5;

bool includes(const std::vector<ExpertId>& all, const std::vector<ExpertId>& some) {
  return std::includes(all.begin(), all.end(), some.begin(), some.end());
}

void add_owned(const Placement& placement, std::vector<std::vector<ExpertId>>& per_worker) {
  for (std::size_t layer = 0; layer < placement.owners.size(); ++layer) {
    for (std::size_t expert = 0; expert < placement.owners[layer].size(); ++expert) {
      for (WorkerId owner : placement.owners[layer][expert]) {
        per_worker[owner.value].push_back(
            {static_cast<std::int32_t>(layer), static_cast<std::int32_t>(expert)});
      }
    }
  }
}

}  // namespace

void ClusterState::reconcile() {
  prune_history();
  if (shutting_down_) {
    advance_shutdown();
  } else {
    advance_change();
    supervise_workers();
  }
  refresh_view();
}

void ClusterState::prune_history() {
  if (history_.empty()) return;
  Epoch oldest = history_.back().placement.epoch;
  for (const auto& [id, router] : routers_) {
    if (router.oldest.value != 0) oldest = std::min(oldest, router.oldest);
  }
  std::erase_if(history_,
                [oldest](const EpochView& view) { return view.placement.epoch < oldest; });
}

std::vector<ClusterState::Experts> ClusterState::needed_experts() const {
  std::vector<Experts> needed(workers_.size());
  const Placement* previous = nullptr;
  for (const EpochView& view : history_) {
    if (previous == nullptr || previous->owners != view.placement.owners)
      add_owned(view.placement, needed);
    previous = &view.placement;
  }
  if (change_ && change_->phase != Phase::kSettling) {
    add_owned(change_->saved.placement, needed);
    if (change_->phase != Phase::kDraining) add_owned(change_->target.placement, needed);
  }
  for (Experts& experts : needed) {
    std::sort(experts.begin(), experts.end());
    experts.erase(std::unique(experts.begin(), experts.end()), experts.end());
  }
  return needed;
}

bool ClusterState::holds(WorkerId id, const Experts& experts) const {
  const Worker& holder = worker(id);
  return holder.process == Worker::Process::kRunning && holder.connection &&
         includes(holder.resident, experts);
}

void ClusterState::supervise_workers() {
  const std::vector<Experts> needed = needed_experts();
  for (std::uint32_t index = 0; index < workers_.size(); ++index) {
    const WorkerId id{index};
    Worker& each = worker(id);
    if (needed[index].empty()) {
      each.lost = each.parked = false;
      each.failures = 0;
      each.backoff = {};
      each.restart_at = {};
      if (each.process == Worker::Process::kRunning) {
        note(LogLevel::kInfo,
             fmt::format("stopping worker {}: no deployment needs its experts", index));
        each.process = Worker::Process::kStopping;
        act(StopWorker{id, each.incarnation});
      }
      continue;
    }
    if (each.process == Worker::Process::kNone && !each.parked && now_ >= each.restart_at) {
      each.process = Worker::Process::kRunning;
      each.incarnation = ++incarnation_counter_;
      each.started = now_;
      if (each.lost) ++worker_restarts_;
      note(LogLevel::kInfo, fmt::format("starting worker {} (incarnation {}) for {} experts{}",
                                        index, each.incarnation, needed[index].size(),
                                        each.lost ? ", again after: " + each.last_loss : ""));
      act(StartWorker{id, each.incarnation});
      continue;
    }
    if (each.process != Worker::Process::kRunning || !each.connection) continue;

    if (!includes(each.requested, needed[index])) {
      request_load(id, needed[index]);
    } else if (each.loading) {
      continue;  // dropping while it loads could cross on the way
    } else if (!includes(each.resident, needed[index])) {
      lose_worker(id, each.last_loss.empty() ? "it lacks experts that it was told to load"
                                             : each.last_loss);
    } else if (each.requested.size() > needed[index].size()) {
      note(LogLevel::kInfo, fmt::format("worker {} drops {} experts that no router uses any more",
                                        index, each.requested.size() - needed[index].size()));
      const Epoch epoch = published() != nullptr ? published()->placement.epoch : Epoch{};
      act(Send{*each.connection, proto::DropExperts{epoch, needed[index]}});
      each.requested = each.resident = needed[index];
      each.stats_due = true;
    }
  }
}

void ClusterState::request_load(WorkerId id, const Experts& needed) {
  Worker& each = worker(id);
  // The number tells this request's answer from those of earlier requests on the same connection.
  const bool for_change =
      change_ && change_->phase == Phase::kLoading && change_->epoch > each.load_epoch;
  each.load_epoch = for_change ? change_->epoch : Epoch{++epoch_counter_};
  each.load_sent = now_;
  each.loading = true;
  act(Send{*each.connection, proto::LoadExperts{each.load_epoch, needed}});
  Experts may_hold;
  std::set_union(each.requested.begin(), each.requested.end(), needed.begin(), needed.end(),
                 std::back_inserter(may_hold));
  each.requested = std::move(may_hold);
}

void ClusterState::forget(Worker& gone) {
  if (gone.connection) {
    act(CloseConnection{*gone.connection});
    worker_connections_.erase(*gone.connection);
    gone.connection.reset();
  }
  gone.hello = {};
  gone.stats = {};
  gone.requested.clear();
  gone.resident.clear();
  gone.load_epoch = {};
  gone.loading = false;
  gone.stats_due = false;
}

void ClusterState::lose_worker(WorkerId id, const std::string& why) {
  Worker& lost = worker(id);
  const bool was_ready = !lost.loading && !lost.resident.empty();
  forget(lost);
  if (lost.process == Worker::Process::kRunning) {
    lost.process = Worker::Process::kKilled;
    act(KillWorker{id, lost.incarnation});
  }
  if (was_ready && now_ - lost.ready_since >= kHealthyAfter) lost.backoff = {};
  lost.backoff = lost.backoff.count() == 0 ? config_.first_backoff
                                           : std::min(lost.backoff * 2, config_.max_backoff);
  lost.restart_at = now_ + lost.backoff;
  lost.lost = true;
  lost.parked = !config_.restart_workers;
  lost.last_loss = why;
  ++lost.losses;
  ++worker_losses_;
  if (!was_ready) ++lost.failures;
  note(LogLevel::kWarning,
       fmt::format("worker {} (incarnation {}) is lost: {}; {}", id.value, lost.incarnation, why,
                   lost.parked ? "it stays away until the next change"
                               : fmt::format("restarting it in {} ms", lost.backoff.count())));
  dirty_ = true;

  if (!change_ || change_->failure || change_->phase != Phase::kLoading ||
      !change_->target.placement.workers().contains(id)) {
    return;
  }
  if (lost.parked) {
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
    if (each.process != Worker::Process::kRunning) continue;
    const auto silent =
        std::chrono::duration_cast<std::chrono::milliseconds>(now_ - each.last_heard);
    if (!each.connection) {
      if (now_ - each.started > config_.start_timeout)
        lose_worker(id, "it did not connect in time");
    } else if (silent > config_.lease_ttl) {
      lose_worker(id, fmt::format("its lease lapsed: silent for {} ms", silent.count()));
    } else if (each.loading && now_ - each.load_sent > config_.operation_timeout) {
      lose_worker(id, "it did not load its experts in time");
    }
  }
}

std::vector<WorkerEndpoint> ClusterState::endpoints(const Placement& placement) const {
  std::vector<Experts> placed(workers_.size());
  add_owned(placement, placed);
  std::vector<WorkerEndpoint> reachable;
  for (std::uint32_t index = 0; index < workers_.size(); ++index) {
    const WorkerId id{index};
    if (placed[index].empty() || !holds(id, placed[index])) continue;
    reachable.push_back({id, worker(id).incarnation, worker(id).hello.lane_address});
  }
  return reachable;
}

void ClusterState::refresh_view() {
  if (history_.empty() || workers_deadline_) return;
  const std::vector<WorkerEndpoint> now_reachable = endpoints(current_.placement);
  const std::vector<WorkerEndpoint>& were_reachable = history_.back().workers;
  if (now_reachable == were_reachable) return;
  std::string why;
  Epoch reserved;
  const auto contains = [](const std::vector<WorkerEndpoint>& all, const WorkerEndpoint& one) {
    return std::find(all.begin(), all.end(), one) != all.end();
  };
  for (const WorkerEndpoint& each : were_reachable) {
    if (!contains(now_reachable, each)) why += fmt::format(", worker {} is gone", each.id.value);
  }
  for (const WorkerEndpoint& each : now_reachable) {
    if (contains(were_reachable, each)) continue;
    why += fmt::format(", worker {} serves again", each.id.value);
    reserved = std::max(reserved, worker(each.id).load_epoch);
  }
  publish(reserved, why.substr(2));
}

void ClusterState::publish(Epoch reserved, const std::string& why) {
  const Epoch last = history_.empty() ? Epoch{} : history_.back().placement.epoch;
  current_.placement.epoch = reserved > last ? reserved : Epoch{++epoch_counter_};
  history_.push_back({current_.placement, endpoints(current_.placement), current_.deployments});
  const EpochView& view = history_.back();
  std::size_t told = 0;
  for (auto& [id, router] : routers_) {
    if (!router.connection) continue;
    act(Send{*router.connection, proto::PublishEpoch{view}});
    if (router.oldest.value == 0) router.oldest = view.placement.epoch;
    ++told;
  }
  ++epoch_changes_;
  dirty_ = true;
  note(LogLevel::kInfo,
       fmt::format("epoch {}: {} ({} of {} workers, {} deployments, {} routers told)",
                   view.placement.epoch.value, why, view.workers.size(),
                   view.placement.workers().size(), view.deployments.size(), told));
}

void ClusterState::advance_shutdown() {
  const bool routers_left = std::none_of(routers_.begin(), routers_.end(), [](const auto& entry) {
    return entry.second.connection.has_value();
  });
  if (!workers_deadline_) {
    if (!routers_left && now_ < routers_deadline_) return;
    workers_deadline_ = now_ + config_.stop_timeout;
    for (std::uint32_t index = 0; index < workers_.size(); ++index) {
      Worker& each = workers_[index];
      if (each.process != Worker::Process::kRunning) continue;
      each.process = Worker::Process::kStopping;
      act(StopWorker{WorkerId{index}, each.incarnation});
    }
  }
  const bool all_ended = std::all_of(workers_.begin(), workers_.end(), [](const Worker& each) {
    return each.process == Worker::Process::kNone;
  });
  if (exited_ || (!all_ended && now_ < *workers_deadline_)) return;
  exited_ = true;
  act(Exit{});
}

}  // namespace moiety::coordinator
