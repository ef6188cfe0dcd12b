// What routers are told: which epoch, which workers can be reached.
#include <algorithm>
#include <utility>

#include "coordinator/state.h"

namespace moiety::coordinator {

void ClusterState::prune_history() {
  if (history_.empty()) return;
  Epoch oldest = history_.back().placement.epoch;
  for (const auto& [id, router] : routers_) {
    if (router.oldest.value != 0) oldest = std::min(oldest, router.oldest);
  }
  std::erase_if(history_,
                [oldest](const EpochView& view) { return view.placement.epoch < oldest; });
}

/// The stand-ins that a view may name now: all of them once none has to load any more, until then
/// those that routers know already.
std::map<ExpertId, WorkerId> ClusterState::resident_stand_ins() const {
  const auto is_there = [this](const auto& entry) { return holds(entry.second, {entry.first}); };
  if (std::all_of(stand_ins_.begin(), stand_ins_.end(), is_there)) return stand_ins_;
  std::map<ExpertId, WorkerId> known;
  for (const auto& entry : stand_ins_) {
    const auto published = published_stand_ins_.find(entry.first);
    if (published != published_stand_ins_.end() && published->second == entry.second &&
        is_there(entry)) {
      known.insert(entry);
    }
  }
  return known;
}

Placement ClusterState::effective_placement() const {
  Placement placement = current_.placement;
  for (const auto& [expert, stand_in] : resident_stand_ins()) {
    auto& owners = placement.owners[static_cast<std::size_t>(expert.layer)]
                                   [static_cast<std::size_t>(expert.expert)];
    owners.insert(std::lower_bound(owners.begin(), owners.end(), stand_in), stand_in);
  }
  return placement;
}

std::vector<ClusterState::Experts> ClusterState::placed_experts(const Placement& placement) const {
  std::vector<Experts> placed(workers_.size());
  for (std::size_t layer = 0; layer < placement.owners.size(); ++layer) {
    for (std::size_t expert = 0; expert < placement.owners[layer].size(); ++expert) {
      for (WorkerId owner : placement.owners[layer][expert]) {
        placed[owner.value].push_back(
            {static_cast<std::int32_t>(layer), static_cast<std::int32_t>(expert)});
      }
    }
  }
  return placed;
}

std::vector<WorkerEndpoint> ClusterState::endpoints(const Placement& placement) const {
  const std::vector<Experts> placed = placed_experts(placement);
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
  const EpochView& last = history_.back();
  const std::vector<WorkerEndpoint> now_reachable = endpoints(effective_placement());
  const std::vector<WorkerEndpoint>& were_reachable = last.workers;
  const std::map<ExpertId, WorkerId> stand_ins = resident_stand_ins();
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
  if (stand_ins != published_stand_ins_) {
    why += stand_ins.empty() ? std::string(", no worker stands in any more")
                             : fmt::format(", others stand in for {} experts", stand_ins.size());
  }
  if (current_.deployments != last.deployments) why += ", deployments as they were asked for";
  if (!why.empty()) publish(reserved, why.substr(2));
}

void ClusterState::publish(Epoch reserved, const std::string& why) {
  const Epoch last = history_.empty() ? Epoch{} : history_.back().placement.epoch;
  current_.placement.epoch = reserved > last ? reserved : Epoch{++epoch_counter_};
  published_stand_ins_ = resident_stand_ins();
  Placement placement = effective_placement();
  std::vector<WorkerEndpoint> reachable = endpoints(placement);
  history_.push_back({std::move(placement), std::move(reachable), current_.deployments});
  const EpochView& view = history_.back();
  durable_changed_ = true;
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

}  // namespace moiety::coordinator
