#include "planner/assign.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <unordered_map>

#include "common/check.h"
#include "planner/layer_flow.h"
#include "planner/match.h"

namespace moiety::planner {

namespace {

constexpr std::size_t kNone = static_cast<std::size_t>(-1);

/// Workers of the same type are one pool; bins are their places, pool after pool.
struct Bins {
  std::vector<TypePool> pools;
  std::vector<std::size_t> first;    ///< [pools + 1] exclusive prefix sum of workers
  std::vector<std::size_t> pool_of;  ///< [bins]
  std::vector<WorkerId> worker;      ///< [bins]
  std::unordered_map<WorkerId, std::size_t> bin_of;
};

std::vector<std::size_t> choose_workers(const AssignInput& input, const Bins& bins) {
  const std::size_t num_bins = input.types.size();
  std::vector<std::size_t> identity(num_bins);
  std::iota(identity.begin(), identity.end(), 0);
  if (input.current.owners.empty()) return identity;

  std::unordered_map<WorkerId, std::size_t> index_of;
  for (std::size_t i = 0; i < input.workers.size(); ++i) index_of[input.workers[i]] = i;
  // [pool][worker]: bytes there that a worker of this type may keep.
  std::vector<std::vector<std::uint64_t>> keepable(
      bins.pools.size(), std::vector<std::uint64_t>(input.workers.size(), 0));
  bool any = false;
  for (std::size_t layer = 0; layer < input.membership.size(); ++layer) {
    const std::uint64_t bytes = std::max<std::uint64_t>(1, input.model.layers[layer].expert_bytes);
    for (std::size_t expert = 0; expert < input.membership[layer].size(); ++expert) {
      const Members members = input.membership[layer][expert];
      if (members == 0) continue;
      for (WorkerId owner : input.current.owners[layer][expert]) {
        const auto index = index_of.find(owner);
        if (index == index_of.end()) continue;
        for (std::size_t pool = 0; pool < bins.pools.size(); ++pool) {
          if (!is_subset(members, bins.pools[pool].type)) continue;
          keepable[pool][index->second] += bytes;
          any = true;
        }
      }
    }
  }
  if (!any) return identity;

  std::vector<std::vector<MatchValue>> values(num_bins);
  for (std::size_t bin = 0; bin < num_bins; ++bin) {
    for (std::size_t i = 0; i < input.workers.size(); ++i) {
      // Among equals the preferred workers, and those for the first bins.
      values[bin].push_back(
          {keepable[bins.pool_of[bin]][i], (input.workers.size() - i) * (num_bins - bin)});
    }
  }
  return best_matching(values);
}

Bins make_bins(const AssignInput& input) {
  Bins bins;
  for (std::size_t bin = 0; bin < input.types.size(); ++bin) {
    if (bins.pools.empty() || bins.pools.back().type != input.types[bin]) {
      bins.pools.push_back({input.types[bin], 0, 0});
      bins.first.push_back(bin);
    }
    ++bins.pools.back().num_workers;
    bins.pools.back().slots += input.capacity;
    bins.pool_of.push_back(bins.pools.size() - 1);
  }
  bins.first.push_back(input.types.size());
  for (std::size_t index : choose_workers(input, bins)) {
    bins.bin_of[input.workers[index]] = bins.worker.size();
    bins.worker.push_back(input.workers[index]);
  }
  return bins;
}

/// Places one layer.
class LayerAssignment {
 public:
  LayerAssignment(const AssignInput& input, const Bins& bins, std::size_t layer)
      : members_(input.membership[layer]),
        capacity_(input.capacity),
        bins_(bins),
        bin_(members_.size(), kNone),
        load_(bins.worker.size(), 0) {
    for (std::size_t expert = 0; expert < members_.size(); ++expert) {
      if (members_[expert] == 0) continue;
      groups_[members_[expert]].push_back(expert);
      if (!input.current.owners.empty()) stay(expert, input.current.owners[layer][expert]);
    }
  }

  std::vector<std::vector<WorkerId>> run() {
    const auto placed = distribute(demands(), bins_.pools);
    std::size_t index = 0;
    for (const auto& [members, experts] : groups_) make_leave(experts, placed[index++]);
    index = 0;
    for (const auto& [members, experts] : groups_) settle(experts, placed[index++]);

    std::vector<std::vector<WorkerId>> owners(members_.size());
    for (std::size_t expert = 0; expert < members_.size(); ++expert) {
      if (bin_[expert] != kNone) owners[expert] = {bins_.worker[bin_[expert]]};
    }
    return owners;
  }

 private:
  void stay(std::size_t expert, const std::vector<WorkerId>& owners) {
    for (WorkerId owner : owners) {
      const auto found = bins_.bin_of.find(owner);
      if (found == bins_.bin_of.end()) continue;
      const std::size_t bin = found->second;
      if (load_[bin] == capacity_ || !is_subset(members_[expert], type_of(bin))) continue;
      bin_[expert] = bin;
      ++load_[bin];
      return;
    }
  }

  Members type_of(std::size_t bin) const { return bins_.pools[bins_.pool_of[bin]].type; }

  std::vector<GroupDemand> demands() const {
    std::vector<GroupDemand> demands;
    for (const auto& [members, experts] : groups_) {
      demands.push_back({members, static_cast<std::int32_t>(experts.size()), living(experts)});
    }
    return demands;
  }

  std::vector<std::int32_t> living(const std::vector<std::size_t>& experts) const {
    std::vector<std::int32_t> living(bins_.pools.size(), 0);
    for (std::size_t expert : experts) {
      if (bin_[expert] != kNone) ++living[bins_.pool_of[bin_[expert]]];
    }
    return living;
  }

  /// Takes experts that their pool has no place for off its fullest workers.
  void make_leave(const std::vector<std::size_t>& experts,
                  const std::vector<std::int32_t>& placed) {
    const auto counts = living(experts);
    for (std::size_t pool = 0; pool < placed.size(); ++pool) {
      for (std::int32_t i = placed[pool]; i < counts[pool]; ++i) {
        std::size_t leaver = kNone;
        for (std::size_t expert : experts) {
          if (bin_[expert] == kNone || bins_.pool_of[bin_[expert]] != pool) continue;
          if (leaver == kNone || load_[bin_[expert]] > load_[bin_[leaver]]) leaver = expert;
        }
        --load_[bin_[leaver]];
        bin_[leaver] = kNone;
      }
    }
  }

  /// Gives the experts without a place one on the emptiest workers of the pools that have places
  /// for them.
  void settle(const std::vector<std::size_t>& experts, const std::vector<std::int32_t>& placed) {
    auto open = living(experts);
    for (std::size_t pool = 0; pool < placed.size(); ++pool) open[pool] = placed[pool] - open[pool];
    std::size_t pool = 0;
    for (std::size_t expert : experts) {
      if (bin_[expert] != kNone) continue;
      while (open[pool] == 0) ++pool;
      --open[pool];
      std::size_t best = bins_.first[pool];
      for (std::size_t bin = best; bin < bins_.first[pool + 1]; ++bin) {
        if (load_[bin] < load_[best]) best = bin;
      }
      MOIETY_CHECK(load_[best] < capacity_, "a pool was given more experts than it holds");
      bin_[expert] = best;
      ++load_[best];
    }
  }

  const std::vector<Members>& members_;
  std::int32_t capacity_;
  const Bins& bins_;
  std::map<Members, std::vector<std::size_t>> groups_;
  std::vector<std::size_t> bin_;    ///< [experts]; kNone: no place (yet)
  std::vector<std::int32_t> load_;  ///< [bins]
};

}  // namespace

Placement assign_experts(const AssignInput& input) {
  MOIETY_CHECK(input.types.size() <= input.workers.size(), "more worker types than workers");
  const Bins bins = make_bins(input);
  Placement placement{.epoch = input.current.epoch, .owners = {}};
  for (std::size_t layer = 0; layer < input.membership.size(); ++layer) {
    placement.owners.push_back(LayerAssignment(input, bins, layer).run());
  }
  return placement;
}

}  // namespace moiety::planner
