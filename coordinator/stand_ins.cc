// Experts of which no owner serves: who takes them over meanwhile.
#include <algorithm>
#include <iterator>
#include <limits>
#include <set>
#include <utility>

#include "coordinator/stand_ins.h"
#include "coordinator/state.h"

namespace moiety::coordinator {

namespace {

constexpr std::uint64_t kUnlimited = std::numeric_limits<std::uint64_t>::max();

}  // namespace

/// Keeps stand_ins_ in step with who serves. A worker that stands in may go up to its limit.
///
/// A lost worker of a local fleet is started again at the same time: its experts are with several
/// others sooner, because they need not start and read in parallel. If the others cannot take all,
/// nobody reads anything: requests would wait for the rest anyway.
void ClusterState::choose_stand_ins() {
  if (history_.empty()) return;
  const auto& owners = current_.placement.owners;
  if (stand_ins_.empty()) {
    const std::vector<Experts> placed = placed_experts(current_.placement);
    bool all_there = true;
    for (std::uint32_t index = 0; index < workers_.size(); ++index) {
      all_there = all_there && (placed[index].empty() || holds(WorkerId{index}, placed[index]));
    }
    if (all_there) return;
  }

  const auto is_served = [&](ExpertId id) {
    const auto& holders =
        owners[static_cast<std::size_t>(id.layer)][static_cast<std::size_t>(id.expert)];
    return holders.empty() || std::any_of(holders.begin(), holders.end(), [&](WorkerId holder) {
             return serves(holder) && std::binary_search(worker(holder).resident.begin(),
                                                         worker(holder).resident.end(), id);
           });
  };
  // Its owner is back and reads it: nobody else would be sooner.
  const auto is_coming = [&](ExpertId id) {
    const auto& holders =
        owners[static_cast<std::size_t>(id.layer)][static_cast<std::size_t>(id.expert)];
    return std::any_of(holders.begin(), holders.end(), [&](WorkerId holder) {
      const Worker& each = worker(holder);
      return serves(holder) && each.loading &&
             std::binary_search(each.load_set.begin(), each.load_set.end(), id);
    });
  };
  std::erase_if(stand_ins_, [&](const auto& entry) { return is_served(entry.first); });

  Experts missing;
  for (std::size_t layer = 0; layer < owners.size(); ++layer) {
    for (std::size_t expert = 0; expert < owners[layer].size(); ++expert) {
      const ExpertId id{static_cast<std::int32_t>(layer), static_cast<std::int32_t>(expert)};
      if (!stand_ins_.contains(id) && !is_served(id) && !is_coming(id)) missing.push_back(id);
    }
  }
  if (missing.empty()) return;
  // Where not all find room, those that are missed most do.
  std::stable_sort(missing.begin(), missing.end(),
                   [this](ExpertId a, ExpertId b) { return load_.share(a) > load_.share(b); });

  struct Candidate {
    WorkerId id;
    std::uint64_t room;
    std::uint64_t taken = 0;
  };
  std::vector<Candidate> candidates;
  const std::vector<Experts> needed = needed_experts();
  for (std::uint32_t index = 0; index < workers_.size(); ++index) {
    const WorkerId id{index};
    const auto banned = no_stand_in_before_.find(id);
    if (!serves(id) || !usable(id) || !worker(id).connection) continue;
    if (banned != no_stand_in_before_.end() && now_ < banned->second) continue;
    // Only where something is held now, unless nothing has to be started for it.
    if (!config_.static_fleet && worker(id).resident.empty()) continue;
    const std::uint64_t limit = limit_of(id);
    Experts held = needed[index];
    if (!usage_known()) {  // nothing is dropped yet
      held.clear();
      std::set_union(needed[index].begin(), needed[index].end(), worker(id).may_hold.begin(),
                     worker(id).may_hold.end(), std::back_inserter(held));
    }
    const std::uint64_t used = bytes_of(held);
    candidates.push_back({id, limit == 0 ? kUnlimited : limit > used ? limit - used : 0});
  }

  std::map<ExpertId, WorkerId> chosen;
  std::uint64_t lacking = 0;
  for (ExpertId id : missing) {
    const std::uint64_t bytes =
        config_.model.layers[static_cast<std::size_t>(id.layer)].expert_bytes;
    Candidate* best = nullptr;
    for (Candidate& each : candidates) {
      if (each.room < bytes) continue;
      if (best == nullptr || each.taken < best->taken) best = &each;
    }
    if (best == nullptr) {
      lacking += bytes;
      continue;
    }
    if (best->room != kUnlimited) best->room -= bytes;
    best->taken += bytes;
    chosen[id] = best->id;
  }

  const bool all_or_none = !config_.static_fleet && config_.restart_workers;
  const bool first_look = std::exchange(stand_ins_looked_at_, worker_losses_) != worker_losses_;
  if (lacking > 0 && first_look) {
    note(LogLevel::kWarning,
         fmt::format("the other workers lack {} bytes to take {} experts over{}", lacking,
                     missing.size(), all_or_none ? ": their requests wait for the restart" : ""));
  }
  if (chosen.empty() || (lacking > 0 && all_or_none)) return;
  for (const Candidate& each : candidates) {
    if (each.taken == 0) continue;
    note(LogLevel::kInfo,
         fmt::format("worker {} takes over experts of {} bytes{}", each.id.value, each.taken,
                     all_or_none ? ": sooner than the restart of their worker" : ""));
  }
  stand_ins_.merge(chosen);
}

void ClusterState::drop_stand_ins(WorkerId id) {
  const std::size_t before = stand_ins_.size();
  std::erase_if(stand_ins_,
                [&](const auto& entry) { return entry.second == id && !holds(id, {entry.first}); });
  if (stand_ins_.size() != before) no_stand_in_before_[id] = now_ + kNoStandInAfterFailure;
}

/// A static fleet whose workers came and went for good: place anew over those that are there.
bool ClusterState::rebalance_due() {
  if (!config_.static_fleet || history_.empty() || fleet_version_ == rebalanced_version_) {
    return false;
  }
  if (now_ - fleet_changed_at_ < config_.lease_ttl || now_ < peers_back_at_) return false;
  rebalanced_version_ = fleet_version_;
  const std::set<WorkerId> placed = current_.placement.workers();
  const bool somebody_gone =
      std::any_of(placed.begin(), placed.end(), [this](WorkerId id) { return !serves(id); });
  return somebody_gone ||
         planner::missing_replicas(current_.deployments, current_.placement, config_.replicas) > 0;
}

}  // namespace moiety::coordinator
