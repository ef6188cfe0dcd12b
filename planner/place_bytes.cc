#include "planner/place_bytes.h"

#include <algorithm>
#include <bit>
#include <map>
#include <numeric>
#include <optional>

#include "common/check.h"
#include "planner/grow_types.h"
#include "planner/match.h"
#include "planner/worker_types.h"

namespace moiety::planner {

namespace {

/// Bytes are counted in about so many units per worker when types are chosen.
constexpr std::uint64_t kUnitsPerWorker = 512;

struct Slot {
  WorkerId worker;
  std::uint64_t capacity = 0;  ///< bytes
  Members type = 0;            ///< whose experts may come here
};

class BytesPlacement {
 public:
  BytesPlacement(const ModelShape& model,
                 const Membership& membership,
                 const PlaceOptions& options,
                 const Placement& current)
      : model_(model), membership_(membership), options_(options), current_(current) {
    for (std::size_t layer = 0; layer < membership.size(); ++layer) {
      const std::uint64_t bytes = model.layers[layer].expert_bytes;
      std::int32_t experts = 0;
      for (Members members : membership[layer]) {
        if (members == 0) continue;
        bytes_by_members_[members] += bytes;
        total_bytes_ += bytes;
        largest_ = std::max(largest_, bytes);
        ++experts;
      }
      most_in_a_layer_ = std::max(most_in_a_layer_, experts);
    }
    for (std::size_t i = 0; i < options.workers.size(); ++i) {
      const std::uint64_t given = options.capacity_bytes.empty() ? 0 : options.capacity_bytes[i];
      // More than everything is as good as no limit.
      const std::uint64_t all = std::max<std::uint64_t>(1, total_bytes_);
      all_.push_back({options.workers[i], given == 0 ? all : std::min(given, all), 0});
    }
  }

  Result<Placement> run() {
    if (total_bytes_ == 0) return empty();
    MOIETY_TRY(check_room());
    std::size_t least = 1;
    if (options_.capacity_per_layer > 0) {
      least = static_cast<std::size_t>((most_in_a_layer_ + options_.capacity_per_layer - 1) /
                                       options_.capacity_per_layer);
    }
    for (std::size_t count = least; count <= all_.size(); ++count) {
      std::vector<Slot> slots = choose_slots(count);
      if (slots.empty()) continue;
      for (const bool grouped : {true, false}) {
        if (grouped && !choose_types(slots)) continue;
        if (!grouped) {
          for (Slot& each : slots) each.type = ~Members{0};
        }
        match(slots);
        if (auto placement = place(slots)) return *std::move(placement);
      }
    }
    return fail(ErrorCode::kResourceExhausted,
                "the deployments need " + std::to_string(total_bytes_) + " bytes, and " +
                    std::to_string(all_.size()) +
                    " workers together have as much, but experts do not fit what is left on "
                    "single workers; give each about " +
                    std::to_string(largest_) + " bytes more, or allow one more worker");
  }

 private:
  Placement empty() const {
    Placement placement{.epoch = current_.epoch, .owners = {}};
    for (const auto& layer : membership_) placement.owners.emplace_back(layer.size());
    return placement;
  }

  Result<void> check_room() const {
    std::uint64_t room = 0;
    for (const Slot& each : all_) room += each.capacity;
    if (room >= total_bytes_) return {};
    return fail(ErrorCode::kResourceExhausted,
                "the deployments need " + std::to_string(total_bytes_) + " bytes, but " +
                    std::to_string(all_.size()) + " workers hold " + std::to_string(room) + ": " +
                    std::to_string(total_bytes_ - room) +
                    " bytes are missing; allow more workers or more memory, or deploy less");
  }

  /// The first `count` workers in order of preference, with larger ones instead of the smallest
  /// where that is too little. Empty: no `count` workers are enough.
  std::vector<Slot> choose_slots(std::size_t count) const {
    std::vector<Slot> slots(all_.begin(), all_.begin() + static_cast<std::ptrdiff_t>(count));
    std::vector<Slot> others(all_.begin() + static_cast<std::ptrdiff_t>(count), all_.end());
    const auto smaller = [](const Slot& a, const Slot& b) { return a.capacity < b.capacity; };
    const auto room = [&slots] {
      return std::accumulate(
          slots.begin(), slots.end(), std::uint64_t{0},
          [](std::uint64_t sum, const Slot& each) { return sum + each.capacity; });
    };
    while (room() < total_bytes_) {
      const auto smallest = std::min_element(slots.begin(), slots.end(), smaller);
      const auto largest = std::max_element(others.begin(), others.end(), smaller);
      if (largest == others.end() || largest->capacity <= smallest->capacity) return {};
      std::swap(*smallest, *largest);
    }
    return slots;
  }

  /// Types for these workers; false when whole units do not fit.
  bool choose_types(std::vector<Slot>& slots) const {
    const std::uint64_t widest =
        std::max_element(slots.begin(), slots.end(), [](const Slot& a, const Slot& b) {
          return a.capacity < b.capacity;
        })->capacity;
    const std::uint64_t unit = std::max<std::uint64_t>(1, widest / kUnitsPerWorker);
    MemberCounts groups;
    std::int64_t needed = 0;
    for (const auto& [members, bytes] : bytes_by_members_) {
      groups.emplace_back(members, static_cast<std::int32_t>((bytes + unit - 1) / unit));
      needed += groups.back().second;
    }
    std::vector<std::int32_t> units;
    std::int64_t room = 0;
    for (const Slot& each : slots) {
      units.push_back(static_cast<std::int32_t>(each.capacity / unit));
      room += units.back();
    }
    if (room < needed) return false;
    const bool equal =
        std::adjacent_find(units.begin(), units.end(), std::not_equal_to<>()) == units.end();
    std::vector<Members> types;
    if (equal) {
      types = choose_worker_types({groups}, units.front());
      if (types.size() > slots.size()) return false;
      // More workers than the bytes need: a layer needs them, or experts do not fit otherwise.
      types.resize(slots.size(), ~Members{0});
    } else {
      types = grow_worker_types({groups}, units);
    }
    for (std::size_t i = 0; i < slots.size(); ++i) slots[i].type = types[i];
    return true;
  }

  /// Gives types to workers of the same size so that the most bytes stay where they are.
  void match(std::vector<Slot>& slots) const {
    if (current_.owners.empty()) return;
    std::map<WorkerId, std::map<Members, std::uint64_t>> held;
    for (std::size_t layer = 0; layer < membership_.size(); ++layer) {
      for (std::size_t expert = 0; expert < membership_[layer].size(); ++expert) {
        if (membership_[layer][expert] == 0) continue;
        for (WorkerId owner : current_.owners[layer][expert])
          held[owner][membership_[layer][expert]] += model_.layers[layer].expert_bytes;
      }
    }
    constexpr std::uint64_t kAllowed = std::uint64_t{1} << 52;  // above all bytes of a fleet
    std::vector<std::vector<MatchValue>> values(slots.size());
    for (std::size_t slot = 0; slot < slots.size(); ++slot) {
      for (std::size_t i = 0; i < all_.size(); ++i) {
        MatchValue value;
        value.second = (all_.size() - i) * (slots.size() - slot);
        if (all_[i].capacity == slots[slot].capacity) {
          value.first = kAllowed;
          for (const auto& [members, bytes] : held[all_[i].worker]) {
            if (is_subset(members, slots[slot].type)) value.first += bytes;
          }
        }
        values[slot].push_back(value);
      }
    }
    const auto chosen = best_matching(values);
    for (std::size_t slot = 0; slot < slots.size(); ++slot) {
      MOIETY_CHECK(all_[chosen[slot]].capacity == slots[slot].capacity,
                   "a worker type went to a worker of another size");
      slots[slot].worker = all_[chosen[slot]].worker;
    }
  }

  struct Load {
    std::uint64_t bytes = 0;
    std::vector<std::int32_t> experts;  ///< [layers]
  };

  bool has_room(const Slot& slot, const Load& load, std::size_t layer) const {
    if (options_.capacity_per_layer > 0 && load.experts[layer] >= options_.capacity_per_layer)
      return false;
    return load.bytes + model_.layers[layer].expert_bytes <= slot.capacity;
  }

  std::optional<Placement> place(std::vector<Slot> slots) const {
    Placement placement = empty();
    std::vector<Load> loads(slots.size(), {0, std::vector<std::int32_t>(membership_.size(), 0)});
    const auto put = [&](std::size_t layer, std::size_t expert, std::size_t slot) {
      placement.owners[layer][expert] = {slots[slot].worker};
      loads[slot].bytes += model_.layers[layer].expert_bytes;
      ++loads[slot].experts[layer];
    };
    for (Members members : least_choice_first(slots)) {
      for_each(members, [&](std::size_t layer, std::size_t expert) {
        if (current_.owners.empty()) return;
        for (WorkerId owner : current_.owners[layer][expert]) {
          const auto slot = static_cast<std::size_t>(
              std::find_if(slots.begin(), slots.end(),
                           [&](const Slot& each) { return each.worker == owner; }) -
              slots.begin());
          if (slot == slots.size() || !is_subset(members, slots[slot].type) ||
              !has_room(slots[slot], loads[slot], layer)) {
            continue;
          }
          return put(layer, expert, slot);
        }
      });
      bool all_fit = true;
      for_each(members, [&](std::size_t layer, std::size_t expert) {
        if (!all_fit || !placement.owners[layer][expert].empty()) return;
        const auto slot = emptiest(slots, loads, layer, members);
        if (!slot) {
          all_fit = false;
          return;
        }
        slots[*slot].type |= members;
        put(layer, expert, *slot);
      });
      if (!all_fit) return std::nullopt;
    }
    return placement;
  }

  std::vector<Members> least_choice_first(const std::vector<Slot>& slots) const {
    std::vector<std::pair<std::uint64_t, Members>> order;
    for (const auto& [members, bytes] : bytes_by_members_) {
      std::uint64_t room = 0;
      for (const Slot& each : slots) room += is_subset(members, each.type) ? each.capacity : 0;
      order.emplace_back(room, members);
    }
    std::sort(order.begin(), order.end());
    std::vector<Members> sorted;
    for (const auto& [room, members] : order) sorted.push_back(members);
    return sorted;
  }

  template <class Visit>
  void for_each(Members members, const Visit& visit) const {
    for (std::size_t layer = 0; layer < membership_.size(); ++layer) {
      for (std::size_t expert = 0; expert < membership_[layer].size(); ++expert) {
        if (membership_[layer][expert] == members) visit(layer, expert);
      }
    }
  }

  /// Where the type grows least; then where the layer, then the whole, is emptiest for the size.
  std::optional<std::size_t> emptiest(const std::vector<Slot>& slots,
                                      const std::vector<Load>& loads,
                                      std::size_t layer,
                                      Members members) const {
    std::optional<std::size_t> best;
    std::tuple<int, double, double> best_cost;
    for (std::size_t i = 0; i < slots.size(); ++i) {
      if (!has_room(slots[i], loads[i], layer)) continue;
      const auto size = static_cast<double>(slots[i].capacity);
      const std::tuple cost{std::popcount(members & ~slots[i].type),
                            static_cast<double>(loads[i].experts[layer]) / size,
                            static_cast<double>(loads[i].bytes) / size};
      if (!best || cost < best_cost) {
        best = i;
        best_cost = cost;
      }
    }
    return best;
  }

  const ModelShape& model_;
  const Membership& membership_;
  const PlaceOptions& options_;
  const Placement& current_;
  std::vector<Slot> all_;  ///< in order of preference
  std::map<Members, std::uint64_t> bytes_by_members_;
  std::uint64_t total_bytes_ = 0;
  std::uint64_t largest_ = 0;
  std::int32_t most_in_a_layer_ = 0;
};

}  // namespace

Result<Placement> place_by_bytes(const ModelShape& model,
                                 const Membership& membership,
                                 const PlaceOptions& options,
                                 const Placement& current) {
  return BytesPlacement(model, membership, options, current).run();
}

}  // namespace moiety::planner
