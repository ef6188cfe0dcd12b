#include "planner/moves.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <numeric>
#include <optional>

#include "common/check.h"

namespace moiety::planner {

namespace {

constexpr std::uint64_t kUnlimited = std::numeric_limits<std::uint64_t>::max();
/// No sensible move takes more; a bound on a search that would go in circles.
constexpr std::size_t kMaxSteps = 1000;

bool contains(const std::vector<WorkerId>& all, WorkerId one) {
  return std::find(all.begin(), all.end(), one) != all.end();
}

class Mover {
 public:
  Mover(const ModelShape& model,
        const Placement& from,
        const Placement& to,
        const std::map<WorkerId, std::uint64_t>& limit_bytes)
      : to_(to) {
    std::set_union(from.router_experts.begin(), from.router_experts.end(),
                   to.router_experts.begin(), to.router_experts.end(),
                   std::back_inserter(router_experts_));
    for (std::size_t layer = 0; layer < to.owners.size(); ++layer) {
      for (std::size_t expert = 0; expert < to.owners[layer].size(); ++expert) {
        Expert each;
        each.layer = layer;
        each.expert = expert;
        each.bytes = model.layers[layer].expert_bytes;
        each.target = to.owners[layer][expert];
        if (!from.owners.empty()) each.now = from.owners[layer][expert];
        for (WorkerId worker : each.now) workers_[worker].used += each.bytes;
        for (WorkerId worker : each.target) workers_[worker];
        experts_.push_back(std::move(each));
      }
    }
    for (auto& [id, worker] : workers_) {
      const auto limit = limit_bytes.find(id);
      worker.limit = limit == limit_bytes.end() ? kUnlimited : limit->second;
    }
  }

  Result<std::vector<Placement>> run() {
    std::vector<Placement> steps;
    std::size_t parked = 0;
    while (steps.size() < kMaxSteps) {
      if (rest_fits()) {
        steps.push_back(to_);
        return steps;
      }
      const std::vector<Load> loads = choose_loads();
      if (take_step(loads)) {
        steps.push_back(placement());
        continue;
      }
      const std::optional<Load> park = parked < experts_.size() ? choose_parking() : std::nullopt;
      if (!park) break;
      ++parked;
      this->park(*park);
      steps.push_back(placement());
    }
    return stuck();
  }

 private:
  struct Expert {
    std::size_t layer = 0;
    std::size_t expert = 0;
    std::uint64_t bytes = 0;
    std::vector<WorkerId> now;
    std::vector<WorkerId> target;
  };
  struct WorkerBytes {
    std::uint64_t used = 0;
    std::uint64_t limit = kUnlimited;
    std::uint64_t room() const {
      return limit == kUnlimited ? limit : limit - std::min(limit, used);
    }
  };
  struct Load {
    std::size_t expert;
    WorkerId worker;
  };

  template <class Visit>
  void for_pending(const Visit& visit) const {
    for (std::size_t i = 0; i < experts_.size(); ++i) {
      for (WorkerId worker : experts_[i].target) {
        if (!contains(experts_[i].now, worker)) visit(i, worker);
      }
    }
  }

  bool has_old_copy(const Expert& expert) const {
    return std::any_of(expert.now.begin(), expert.now.end(),
                       [&](WorkerId worker) { return !contains(expert.target, worker); });
  }

  std::map<WorkerId, std::uint64_t> pending_bytes() const {
    std::map<WorkerId, std::uint64_t> pending;
    for_pending([&](std::size_t i, WorkerId worker) { pending[worker] += experts_[i].bytes; });
    return pending;
  }

  bool rest_fits() const {
    const auto pending = pending_bytes();
    return std::all_of(pending.begin(), pending.end(), [this](const auto& entry) {
      return entry.second <= workers_.at(entry.first).room();
    });
  }

  /// As many as there is room for: first those that free room on workers that need it most. What
  /// frees nothing (a new expert, one more copy) waits until no expert has to leave any more.
  std::vector<Load> choose_loads() const {
    const auto pending = pending_bytes();
    // What a worker lacks to take in all that it shall.
    const auto lack = [&](WorkerId id) -> std::uint64_t {
      const auto found = pending.find(id);
      const std::uint64_t room = workers_.at(id).room();
      return found == pending.end() || found->second <= room ? 0 : found->second - room;
    };
    struct Choice {
      Load load;
      bool frees;
      std::uint64_t lack_at_source;
    };
    std::vector<Choice> choices;
    bool any_frees = false;
    for_pending([&](std::size_t i, WorkerId worker) {
      Choice choice{{i, worker}, false, 0};
      for (WorkerId source : experts_[i].now) {
        if (contains(experts_[i].target, source)) continue;
        choice.frees = true;
        choice.lack_at_source = std::max(choice.lack_at_source, lack(source));
      }
      any_frees |= choice.frees;
      choices.push_back(choice);
    });
    if (any_frees) std::erase_if(choices, [](const Choice& each) { return !each.frees; });
    std::stable_sort(choices.begin(), choices.end(), [](const Choice& a, const Choice& b) {
      return a.lack_at_source > b.lack_at_source;
    });
    std::map<WorkerId, std::uint64_t> room;
    for (const auto& [id, worker] : workers_) room[id] = worker.room();
    std::vector<Load> loads;
    for (const Choice& each : choices) {
      std::uint64_t& left = room.at(each.load.worker);
      const std::uint64_t bytes = experts_[each.load.expert].bytes;
      if (left < bytes) continue;
      if (left != kUnlimited) left -= bytes;
      loads.push_back(each.load);
    }
    return loads;
  }

  /// Loads, then drops what that makes superfluous; false when nothing changes.
  bool take_step(const std::vector<Load>& loads) {
    std::vector<std::size_t> copies(experts_.size());
    for (std::size_t i = 0; i < experts_.size(); ++i) {
      copies[i] = std::min(experts_[i].now.size(), experts_[i].target.size());
    }
    for (const Load& load : loads) add(load);
    bool changed = !loads.empty();
    for (std::size_t i = 0; i < experts_.size(); ++i) {
      Expert& expert = experts_[i];
      if (!has_old_copy(expert)) continue;
      const auto arrived = static_cast<std::size_t>(
          std::count_if(expert.now.begin(), expert.now.end(),
                        [&](WorkerId worker) { return contains(expert.target, worker); }));
      std::size_t old_to_keep = copies[i] - std::min(copies[i], arrived);
      const std::vector<WorkerId> now = expert.now;
      for (WorkerId worker : now) {
        if (contains(expert.target, worker)) continue;
        if (old_to_keep > 0) {
          --old_to_keep;
          continue;
        }
        remove({i, worker});
        changed = true;
      }
    }
    return changed;
  }

  /// A copy that shall leave a worker without room, and a worker that shall not have it but could
  /// keep it for a while. The expert is still given by its old place: `source` is found again.
  std::optional<Load> choose_parking() const {
    const auto pending = pending_bytes();
    for (std::size_t i = 0; i < experts_.size(); ++i) {
      const Expert& expert = experts_[i];
      if (!has_old_copy(expert)) continue;
      const WorkerId source = old_place(expert);
      const auto wants = pending.find(source);
      if (wants == pending.end()) continue;  // leaving would help nobody
      for (const auto& [id, worker] : workers_) {
        // Room beyond what it shall take in itself.
        const auto own = pending.find(id);
        const std::uint64_t reserved = own == pending.end() ? 0 : own->second;
        if (contains(expert.now, id) || contains(expert.target, id)) continue;
        if (worker.room() < expert.bytes || worker.room() - expert.bytes < reserved) continue;
        return Load{i, id};
      }
    }
    return std::nullopt;
  }

  void park(const Load& load) {
    const WorkerId source = old_place(experts_[load.expert]);
    add(load);
    remove({load.expert, source});
  }

  WorkerId old_place(const Expert& expert) const {
    for (WorkerId worker : expert.now) {
      if (!contains(expert.target, worker)) return worker;
    }
    MOIETY_CHECK(false, "an expert without an old copy cannot leave");
  }

  void add(const Load& load) {
    Expert& expert = experts_[load.expert];
    expert.now.insert(std::lower_bound(expert.now.begin(), expert.now.end(), load.worker),
                      load.worker);
    workers_.at(load.worker).used += expert.bytes;
  }
  void remove(const Load& load) {
    Expert& expert = experts_[load.expert];
    expert.now.erase(std::find(expert.now.begin(), expert.now.end(), load.worker));
    workers_.at(load.worker).used -= expert.bytes;
  }

  Placement placement() const {
    Placement placement{
        .epoch = to_.epoch, .owners = to_.owners, .router_experts = router_experts_};
    for (const Expert& each : experts_) placement.owners[each.layer][each.expert] = each.now;
    return placement;
  }

  Error stuck() const {
    std::optional<Load> nearest;
    std::uint64_t least = kUnlimited;
    for_pending([&](std::size_t i, WorkerId worker) {
      const std::uint64_t room = workers_.at(worker).room();
      const std::uint64_t lacking = experts_[i].bytes - std::min(experts_[i].bytes, room);
      if (lacking < least) {
        least = lacking;
        nearest = Load{i, worker};
      }
    });
    if (!nearest || least == 0) {
      return fail(ErrorCode::kResourceExhausted,
                  "no order was found in which the experts can move within the headroom; raise "
                  "--move-headroom");
    }
    return fail(ErrorCode::kResourceExhausted,
                "worker " + std::to_string(nearest->worker.value) + " lacks " +
                    std::to_string(least) + " bytes to take an expert of layer " +
                    std::to_string(experts_[nearest->expert].layer) +
                    " in before it can drop another one; raise --move-headroom or the capacity");
  }

  const Placement& to_;
  std::vector<ExpertId> router_experts_;  // until the last step
  std::vector<Expert> experts_;
  std::map<WorkerId, WorkerBytes> workers_;
};

}  // namespace

Result<std::vector<Placement>> split_move(const ModelShape& model,
                                          const Placement& from,
                                          const Placement& to,
                                          const std::map<WorkerId, std::uint64_t>& limit_bytes) {
  MOIETY_CHECK(to.owners.size() == model.layers.size(),
               "the new placement is of another checkpoint");
  MOIETY_CHECK(from.owners.empty() || from.owners.size() == to.owners.size(),
               "the old placement is of another checkpoint");
  return Mover(model, from, to, limit_bytes).run();
}

}  // namespace moiety::planner
