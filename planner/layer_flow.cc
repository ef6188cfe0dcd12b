#include "planner/layer_flow.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <numeric>

#include "common/check.h"

namespace moiety::planner {

namespace {

constexpr std::size_t kNone = std::numeric_limits<std::size_t>::max();

class Flow {
 public:
  Flow(const std::vector<GroupDemand>& groups, const std::vector<TypePool>& pools)
      : groups_(groups), pools_(pools), load_(pools.size(), 0) {
    for (const GroupDemand& group : groups) {
      placed_.push_back(group.living);
      for (std::size_t pool = 0; pool < pools.size(); ++pool) load_[pool] += group.living[pool];
    }
  }

  std::vector<std::vector<std::int32_t>> run() {
    std::vector<std::size_t> order(groups_.size());
    std::iota(order.begin(), order.end(), 0);
    std::vector<std::int32_t> choice(groups_.size(), 0);
    for (std::size_t group = 0; group < groups_.size(); ++group) {
      for (std::size_t pool = 0; pool < pools_.size(); ++pool) {
        if (allowed(group, pool)) choice[group] += pools_[pool].slots;
      }
    }
    // Those with the least choice first, so that the others spread over what is left.
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return choice[a] < choice[b]; });
    for (std::size_t group : order) {
      const auto& living = groups_[group].living;
      const std::int32_t homeless =
          groups_[group].count - std::accumulate(living.begin(), living.end(), 0);
      for (std::int32_t i = 0; i < homeless; ++i) place_one(group);
    }
    return std::move(placed_);
  }

 private:
  bool allowed(std::size_t group, std::size_t pool) const {
    return is_subset(groups_[group].members, pools_[pool].type);
  }
  bool has_room(std::size_t pool) const { return load_[pool] < pools_[pool].slots; }

  /// Fewer experts per worker.
  bool emptier(std::size_t a, std::size_t b) const {
    return std::int64_t{load_[a]} * pools_[b].num_workers <
           std::int64_t{load_[b]} * pools_[a].num_workers;
  }

  void place_one(std::size_t group) {
    std::size_t best = kNone;
    for (std::size_t pool = 0; pool < pools_.size(); ++pool) {
      if (!allowed(group, pool) || !has_room(pool)) continue;
      if (best == kNone || emptier(pool, best)) best = pool;
    }
    if (best == kNone) best = make_room(group);
    ++placed_[group][best];
    ++load_[best];
  }

  /// Frees a slot in a pool that may hold `group` by moving others on along the path that takes the
  /// fewest experts from where they live; gives that pool.
  std::size_t make_room(std::size_t group) {
    constexpr std::int32_t kFar = std::numeric_limits<std::int32_t>::max();
    std::vector<std::int32_t> distance(pools_.size(), kFar);
    std::vector<std::int32_t> group_distance(groups_.size(), kFar);
    std::vector<Step> step_to(pools_.size());
    std::deque<std::pair<std::int32_t, std::size_t>> queue;  // nearest first: steps cost 0 or 1
    for (std::size_t pool = 0; pool < pools_.size(); ++pool) {
      if (!allowed(group, pool)) continue;
      distance[pool] = 0;
      queue.emplace_back(0, pool);
    }
    while (!queue.empty()) {
      const auto [at, pool] = queue.front();
      queue.pop_front();
      if (at > distance[pool]) continue;
      if (has_room(pool)) return shift(pool, step_to);
      for (std::size_t other = 0; other < groups_.size(); ++other) {
        if (placed_[other][pool] == 0) continue;
        const bool leaves_home = placed_[other][pool] <= groups_[other].living[pool];
        const std::int32_t reached = at + (leaves_home ? 1 : 0);
        // From wherever a group starts it reaches the same pools: only the nearest start counts.
        if (reached >= group_distance[other]) continue;
        group_distance[other] = reached;
        for (std::size_t next = 0; next < pools_.size(); ++next) {
          if (reached >= distance[next] || !allowed(other, next)) continue;
          distance[next] = reached;
          step_to[next] = {pool, other};
          if (leaves_home) {
            queue.emplace_back(reached, next);
          } else {
            queue.emplace_front(reached, next);
          }
        }
      }
    }
    MOIETY_CHECK(false, "the worker types do not fit a layer");
  }

  /// One expert of `group` moves on from pool `from`; kNone at the start of a path.
  struct Step {
    std::size_t from = kNone;
    std::size_t group = kNone;
  };

  /// Moves one expert along every step of the path that ends at `pool`; gives the path's start,
  /// which has a free slot.
  std::size_t shift(std::size_t pool, const std::vector<Step>& step_to) {
    while (step_to[pool].from != kNone) {
      const auto [from, group] = step_to[pool];
      ++placed_[group][pool];
      ++load_[pool];
      --placed_[group][from];
      --load_[from];
      pool = from;
    }
    return pool;
  }

  const std::vector<GroupDemand>& groups_;
  const std::vector<TypePool>& pools_;
  std::vector<std::vector<std::int32_t>> placed_;  ///< [groups][pools]
  std::vector<std::int32_t> load_;                 ///< [pools]
};

}  // namespace

std::vector<std::vector<std::int32_t>> distribute(const std::vector<GroupDemand>& groups,
                                                  const std::vector<TypePool>& pools) {
  return Flow(groups, pools).run();
}

}  // namespace moiety::planner
