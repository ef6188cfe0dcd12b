#include "planner/grow_types.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <optional>

#include "common/check.h"

namespace moiety::planner {

namespace {

/// A trial placement by counts: what each worker holds of each layer.
class Trial {
 public:
  Trial(const std::vector<MemberCounts>& layers, const std::vector<std::int32_t>& capacities)
      : held_(layers.size(), std::vector<MemberCounts>(capacities.size())),
        room_(layers.size(), capacities),
        types_(capacities.size(), 0) {}

  const std::vector<Members>& types() const { return types_; }

  /// Puts `count` experts of `members` where types grow least; among equals where the type is
  /// narrowest.
  void place(std::size_t layer, Members members, std::int32_t count) {
    while (count > 0) {
      std::optional<std::size_t> best;
      std::pair<int, int> best_cost;
      for (std::size_t worker = 0; worker < types_.size(); ++worker) {
        if (room_[layer][worker] == 0) continue;
        const std::pair<int, int> cost{std::popcount(members & ~types_[worker]),
                                       std::popcount(types_[worker])};
        if (!best || cost < best_cost) {
          best = worker;
          best_cost = cost;
        }
      }
      MOIETY_CHECK(best.has_value(), "a layer has more experts than the workers have room");
      const std::int32_t part = std::min(count, room_[layer][*best]);
      add(layer, *best, members, part);
      types_[*best] |= members;
      count -= part;
    }
  }

  /// Moves every expert of `deployment` (one bit) off `worker`, into free room or in exchange for
  /// experts that fit the narrower type, without widening any type. Changes nothing and gives false
  /// where a layer does not allow it.
  bool evict(std::size_t worker, Members deployment) {
    const Members narrowed = types_[worker] & ~deployment;
    std::vector<Move> done;
    for (std::size_t layer = 0; layer < held_.size(); ++layer) {
      // Copied: moves change the list.
      const MemberCounts here = held_[layer][worker];
      for (const auto& [members, count] : here) {
        if ((members & deployment) == 0) continue;
        for (std::int32_t i = 0; i < count; ++i) {
          if (evict_one(layer, worker, members, narrowed, done)) continue;
          for (auto move = done.rbegin(); move != done.rend(); ++move) {
            add(move->layer, move->to, move->members, -1);
            add(move->layer, move->from, move->members, 1);
          }
          return false;
        }
      }
    }
    types_[worker] = narrowed;
    return true;
  }

 private:
  struct Move {
    std::size_t layer;
    std::size_t from;
    std::size_t to;
    Members members;
  };

  void add(std::size_t layer, std::size_t worker, Members members, std::int32_t count) {
    auto& held = held_[layer][worker];
    auto entry = std::find_if(held.begin(), held.end(),
                              [&](const auto& item) { return item.first == members; });
    if (entry == held.end()) entry = held.insert(held.end(), {members, 0});
    entry->second += count;
    if (entry->second == 0) held.erase(entry);
    room_[layer][worker] -= count;
  }

  void move(const Move& step, std::vector<Move>& done) {
    add(step.layer, step.from, step.members, -1);
    add(step.layer, step.to, step.members, 1);
    done.push_back(step);
  }

  bool evict_one(std::size_t layer,
                 std::size_t worker,
                 Members members,
                 Members narrowed,
                 std::vector<Move>& done) {
    std::optional<Move> back;
    for (std::size_t other = 0; other < types_.size(); ++other) {
      if (other == worker || !is_subset(members, types_[other])) continue;
      if (room_[layer][other] > 0) {
        move({layer, worker, other, members}, done);
        return true;
      }
      if (back) continue;
      for (const auto& [candidate, count] : held_[layer][other]) {
        if (is_subset(candidate, narrowed)) {
          back = Move{layer, other, worker, candidate};
          break;
        }
      }
    }
    if (!back) return false;
    move({layer, worker, back->from, members}, done);
    move(*back, done);
    return true;
  }

  std::vector<std::vector<MemberCounts>> held_;  ///< [layer][worker], in order of arrival
  std::vector<std::vector<std::int32_t>> room_;  ///< [layer][worker]
  std::vector<Members> types_;
};

std::int32_t total(const MemberCounts& layer) {
  return std::accumulate(layer.begin(), layer.end(), 0,
                         [](std::int32_t sum, const auto& item) { return sum + item.second; });
}

}  // namespace

std::vector<Members> grow_worker_types(const std::vector<MemberCounts>& layers,
                                       std::int32_t capacity,
                                       std::int32_t num_workers) {
  return grow_worker_types(
      layers, std::vector<std::int32_t>(static_cast<std::size_t>(num_workers), capacity));
}

std::vector<Members> grow_worker_types(const std::vector<MemberCounts>& layers,
                                       const std::vector<std::int32_t>& capacities) {
  std::vector<std::size_t> order(layers.size());
  std::iota(order.begin(), order.end(), 0);
  // The fullest layers have the least choice.
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return total(layers[a]) > total(layers[b]);
  });

  Trial trial(layers, capacities);
  for (std::size_t layer : order) {
    MemberCounts groups = layers[layer];
    // Experts that many deployments keep fit few workers: they choose first.
    std::stable_sort(groups.begin(), groups.end(), [](const auto& a, const auto& b) {
      const int size_a = std::popcount(a.first);
      const int size_b = std::popcount(b.first);
      return size_a != size_b ? size_a > size_b : a.second > b.second;
    });
    for (const auto& [members, count] : groups) trial.place(layer, members, count);
  }

  for (bool narrowed = true; narrowed;) {
    narrowed = false;
    for (std::size_t worker = 0; worker < trial.types().size(); ++worker) {
      for (Members rest = trial.types()[worker]; rest != 0; rest &= rest - 1) {
        if (trial.evict(worker, rest & (~rest + 1))) narrowed = true;
      }
    }
  }
  return trial.types();
}

}  // namespace moiety::planner
