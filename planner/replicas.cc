#include "planner/replicas.h"

#include <algorithm>
#include <bit>
#include <map>
#include <optional>
#include <set>

#include "planner/place_bytes.h"

namespace moiety::planner {

namespace {

bool contains(const std::vector<WorkerId>& all, WorkerId one) {
  return std::find(all.begin(), all.end(), one) != all.end();
}

void insert(std::vector<WorkerId>& owners, WorkerId worker) {
  owners.insert(std::lower_bound(owners.begin(), owners.end(), worker), worker);
}

/// Places the copies that are missing one by one.
class Filler {
 public:
  Filler(const ModelShape& model,
         const Membership& membership,
         const PlaceOptions& options,
         const Placement& current,
         Placement& placement)
      : model_(model),
        membership_(membership),
        options_(options),
        current_(current),
        placement_(placement) {
    for (std::size_t i = 0; i < options.workers.size(); ++i) {
      index_of_[options.workers[i]] = i;
      const std::uint64_t bytes = options.capacity_bytes.empty() ? 0 : options.capacity_bytes[i];
      bins_.push_back(
          {options.workers[i], 0, bytes, 0, std::vector<std::int32_t>(model.layers.size(), 0)});
    }
    for (std::size_t layer = 0; layer < placement.owners.size(); ++layer) {
      for (std::size_t expert = 0; expert < placement.owners[layer].size(); ++expert) {
        for (WorkerId owner : placement.owners[layer][expert]) count(layer, expert, owner, 1);
      }
    }
  }

  /// One more copy for every expert that has fewer than `copies`; with `like` only for those that
  /// have as many there. `keep_first`: copies that are in `current` and have room stay, before any
  /// other gets the room.
  void fill(std::size_t copies, bool keep_first, const Placement* like = nullptr) {
    std::vector<ExpertId> lacking;
    for (std::size_t layer = 0; layer < placement_.owners.size(); ++layer) {
      for (std::size_t expert = 0; expert < placement_.owners[layer].size(); ++expert) {
        const auto& owners = placement_.owners[layer][expert];
        if (owners.empty() || owners.size() >= copies) continue;
        if (like != nullptr && like->owners[layer][expert].size() < copies) continue;
        lacking.push_back({static_cast<std::int32_t>(layer), static_cast<std::int32_t>(expert)});
      }
    }
    if (!options_.load.empty()) {
      const auto load = [this](ExpertId id) {
        return options_
            .load[static_cast<std::size_t>(id.layer)][static_cast<std::size_t>(id.expert)];
      };
      std::stable_sort(lacking.begin(), lacking.end(),
                       [&](ExpertId a, ExpertId b) { return load(a) > load(b); });
    }
    if (keep_first && !current_.owners.empty())
      std::erase_if(lacking, [this](ExpertId id) { return keep(id); });
    for (ExpertId id : lacking) {
      place(static_cast<std::size_t>(id.layer), static_cast<std::size_t>(id.expert));
    }
  }

 private:
  struct Bin {
    WorkerId worker;
    Members type = 0;  ///< deployments that need it
    std::uint64_t capacity_bytes = 0;
    std::uint64_t used_bytes = 0;
    std::vector<std::int32_t> experts;  ///< [layers]
  };

  void count(std::size_t layer, std::size_t expert, WorkerId owner, std::int32_t copies) {
    const auto found = index_of_.find(owner);
    if (found == index_of_.end()) return;
    Bin& bin = bins_[found->second];
    bin.experts[layer] += copies;
    if (copies > 0) {
      bin.used_bytes += model_.layers[layer].expert_bytes;
      bin.type |= membership_[layer][expert];
    } else {
      bin.used_bytes -= model_.layers[layer].expert_bytes;
    }
  }

  bool has_room(const Bin& bin, std::size_t layer) const {
    if (options_.capacity_per_layer > 0 && bin.experts[layer] >= options_.capacity_per_layer)
      return false;
    return bin.capacity_bytes == 0 ||
           bin.used_bytes + model_.layers[layer].expert_bytes <= bin.capacity_bytes;
  }

  /// Leaves a further copy where `current` has one, if there is room; false when there is none.
  bool keep(ExpertId id) {
    const auto layer = static_cast<std::size_t>(id.layer);
    const auto expert = static_cast<std::size_t>(id.expert);
    auto& owners = placement_.owners[layer][expert];
    for (WorkerId holder : current_.owners[layer][expert]) {
      const auto found = index_of_.find(holder);
      if (found == index_of_.end() || contains(owners, holder) ||
          !has_room(bins_[found->second], layer))
        continue;
      insert(owners, holder);
      count(layer, expert, holder, 1);
      return true;
    }
    return false;
  }

  void place(std::size_t layer, std::size_t expert) {
    auto& owners = placement_.owners[layer][expert];
    std::optional<std::size_t> best = best_bin(layer, expert);
    if (!best) best = make_room(layer, expert);
    if (!best) return;
    insert(owners, bins_[*best].worker);
    count(layer, expert, bins_[*best].worker, 1);
  }

  std::optional<std::size_t> best_bin(std::size_t layer, std::size_t expert) const {
    const auto& owners = placement_.owners[layer][expert];
    const Members members = membership_[layer][expert];
    std::optional<std::size_t> best;
    std::tuple<bool, int, std::int32_t> best_cost;
    for (std::size_t i = 0; i < bins_.size(); ++i) {
      const Bin& bin = bins_[i];
      if (contains(owners, bin.worker) || !has_room(bin, layer)) continue;
      const bool holds =
          !current_.owners.empty() && contains(current_.owners[layer][expert], bin.worker);
      const std::tuple cost{!holds, std::popcount(members & ~bin.type), bin.experts[layer]};
      if (!best || cost < best_cost) {
        best = i;
        best_cost = cost;
      }
    }
    return best;
  }

  /// The only room left is beside another copy of the expert: a copy of another expert of the layer
  /// moves there, and its place is free. An expert's only copy moves if no other can.
  std::optional<std::size_t> make_room(std::size_t layer, std::size_t expert) {
    for (const std::size_t least_copies : {2, 1}) {
      for (const Bin& target : bins_) {
        if (!has_room(target, layer)) continue;
        if (const auto freed = move_one_to(target, layer, expert, least_copies)) return freed;
      }
    }
    return std::nullopt;
  }

  /// Moves a copy of an expert that has at least `least_copies` to `target`, from a bin that does
  /// not hold `expert`: that bin. Where it is the only copy, no deployment comes to need the
  /// target.
  std::optional<std::size_t> move_one_to(const Bin& target,
                                         std::size_t layer,
                                         std::size_t expert,
                                         std::size_t least_copies) {
    const auto& mine = placement_.owners[layer][expert];
    const WorkerId to = target.worker;
    for (std::size_t other = 0; other < placement_.owners[layer].size(); ++other) {
      auto& owners = placement_.owners[layer][other];
      if (owners.size() < least_copies || contains(owners, to)) continue;
      if (owners.size() == 1 && (membership_[layer][other] & ~target.type) != 0) continue;
      for (WorkerId source : owners) {
        const auto from = index_of_.find(source);
        if (from == index_of_.end() || contains(mine, source)) continue;
        owners.erase(std::find(owners.begin(), owners.end(), source));
        insert(owners, to);
        count(layer, other, source, -1);
        count(layer, other, to, 1);
        return from->second;
      }
    }
    return std::nullopt;
  }

  const ModelShape& model_;
  const Membership& membership_;
  const PlaceOptions& options_;
  const Placement& current_;
  Placement& placement_;
  std::map<WorkerId, std::size_t> index_of_;
  std::vector<Bin> bins_;
};

/// A whole set of copies on the workers that hold nothing yet, laid out like the first; false when
/// they are too few.
bool mirror(const ModelShape& model,
            const Membership& membership,
            const PlaceOptions& options,
            const Placement& current,
            Placement& placement) {
  const std::set<WorkerId> taken = placement.workers();
  PlaceOptions rest = options;
  rest.workers.clear();
  rest.capacity_bytes.clear();
  for (std::size_t i = 0; i < options.workers.size(); ++i) {
    if (taken.contains(options.workers[i])) continue;
    rest.workers.push_back(options.workers[i]);
    if (!options.capacity_bytes.empty()) rest.capacity_bytes.push_back(options.capacity_bytes[i]);
  }
  if (rest.workers.empty()) return false;
  const auto copies = place_one_copy(model, membership, rest, current);
  if (!copies) return false;
  for (std::size_t layer = 0; layer < placement.owners.size(); ++layer) {
    for (std::size_t expert = 0; expert < placement.owners[layer].size(); ++expert) {
      for (WorkerId owner : copies->owners[layer][expert])
        insert(placement.owners[layer][expert], owner);
    }
  }
  return true;
}

/// What `current` leaves of itself, if that has `copies` of every needed expert and fits.
std::optional<Placement> still_complete(const ModelShape& model,
                                        const Membership& membership,
                                        const PlaceOptions& options,
                                        const Placement& current,
                                        std::size_t copies) {
  if (current.owners.empty()) return std::nullopt;
  Placement left = current;
  for (std::size_t layer = 0; layer < left.owners.size(); ++layer) {
    std::map<WorkerId, std::int32_t> experts;
    for (std::size_t expert = 0; expert < left.owners[layer].size(); ++expert) {
      auto& owners = left.owners[layer][expert];
      if (membership[layer][expert] == 0) owners.clear();
      std::erase_if(owners, [&](WorkerId id) { return !contains(options.workers, id); });
      if (membership[layer][expert] != 0 && owners.size() != copies) return std::nullopt;
      for (WorkerId owner : owners) {
        if (++experts[owner] > options.capacity_per_layer && options.capacity_per_layer > 0)
          return std::nullopt;
      }
    }
  }
  for (std::size_t i = 0; i < options.capacity_bytes.size(); ++i) {
    if (options.capacity_bytes[i] > 0 &&
        bytes_on(model, left, options.workers[i]) > options.capacity_bytes[i]) {
      return std::nullopt;
    }
  }
  return left;
}

std::size_t workers_needed(const std::vector<Deployment>& deployments, const Placement& placement) {
  std::size_t sum = 0;
  for (const Deployment& each : deployments) sum += workers_of(placement, each.kept).size();
  return sum;
}

std::size_t num_copies(const Placement& placement) {
  std::size_t sum = 0;
  for (const auto& layer : placement.owners) {
    for (const auto& owners : layer) sum += owners.size();
  }
  return sum;
}

}  // namespace

void add_replicas(const ModelShape& model,
                  const std::vector<Deployment>& deployments,
                  const Membership& membership,
                  const PlaceOptions& options,
                  const Placement& current,
                  Placement& placement) {
  const auto wanted =
      std::min(static_cast<std::size_t>(std::max(1, options.replicas)), options.workers.size());
  std::size_t copies = 1;
  while (copies < wanted && mirror(model, membership, options, current, placement)) ++copies;
  if (copies < wanted) {
    const auto filled = [&](bool keep_first, const Placement* like) {
      Placement result = placement;
      Filler filler(model, membership, options, current, result);
      for (std::size_t each = copies + 1; each <= wanted; ++each)
        filler.fill(each, keep_first, like);
      return result;
    };
    Placement with_copies = filled(!options.follow_load, nullptr);
    if (options.follow_load) {
      // Who gets copies is settled; those of them that are there already need not move.
      Placement fewer_moves = filled(/*keep_first=*/true, &with_copies);
      if (num_copies(fewer_moves) == num_copies(with_copies)) with_copies = std::move(fewer_moves);
    }
    placement = std::move(with_copies);
  }
  auto left = still_complete(model, membership, options, current, wanted);
  if (left && left->workers().size() <= placement.workers().size() &&
      workers_needed(deployments, *left) <= workers_needed(deployments, placement)) {
    placement = std::move(*left);
  }
}

}  // namespace moiety::planner
