#include "planner/eplb.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>

#include "common/check.h"

namespace moiety::planner {

namespace {

/// Indices by weight, heaviest first; among equals in order.
std::vector<std::size_t> heaviest_first(const std::vector<double>& weights) {
  std::vector<std::size_t> order(weights.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return weights[a] > weights[b]; });
  return order;
}

/// [num_packs] the items of each pack, as many in each: heaviest first into the lightest pack that
/// has a place left.
std::vector<std::vector<std::size_t>> balanced_packing(const std::vector<double>& weights,
                                                       std::size_t num_packs) {
  const std::size_t per_pack = weights.size() / num_packs;
  std::vector<std::vector<std::size_t>> packs(num_packs);
  std::vector<double> load(num_packs, 0);
  for (std::size_t item : heaviest_first(weights)) {
    std::size_t lightest = num_packs;
    for (std::size_t pack = 0; pack < num_packs; ++pack) {
      if (packs[pack].size() == per_pack) continue;
      if (lightest == num_packs || load[pack] < load[lightest]) lightest = pack;
    }
    packs[lightest].push_back(item);
    load[lightest] += weights[item];
  }
  return packs;
}

/// The expert of each of `num_copies` copies: one each, then another of the one with the most load
/// per copy. No expert gets more than `most` copies.
std::vector<std::size_t> replicate(const std::vector<double>& weights,
                                   std::size_t num_copies,
                                   std::size_t most = std::numeric_limits<std::size_t>::max()) {
  std::vector<std::size_t> copies(weights.size());
  std::iota(copies.begin(), copies.end(), 0);
  std::vector<std::size_t> count(weights.size(), 1);
  while (copies.size() < num_copies) {
    std::size_t hottest = weights.size();
    for (std::size_t expert = 0; expert < weights.size(); ++expert) {
      if (count[expert] >= most) continue;
      if (hottest == weights.size() || weights[expert] / static_cast<double>(count[expert]) >
                                           weights[hottest] / static_cast<double>(count[hottest])) {
        hottest = expert;
      }
    }
    if (hottest == weights.size()) break;
    ++count[hottest];
    copies.push_back(hottest);
  }
  return copies;
}

std::vector<double> load_per_copy(const std::vector<double>& weights,
                                  const std::vector<std::size_t>& copies) {
  std::vector<double> count(weights.size(), 0);
  for (std::size_t expert : copies) ++count[expert];
  std::vector<double> load;
  for (std::size_t expert : copies) load.push_back(weights[expert] / count[expert]);
  return load;
}

/// A worker while a layer is packed.
struct Pack {
  std::vector<std::size_t> experts;
  double load = 0;
};

}  // namespace

std::vector<std::int32_t> eplb_balance(const std::vector<double>& weights, const EplbShape& shape) {
  const auto slots = static_cast<std::size_t>(shape.num_slots);
  const auto workers = static_cast<std::size_t>(shape.num_workers);
  auto nodes = static_cast<std::size_t>(shape.num_nodes);
  auto groups = static_cast<std::size_t>(shape.num_groups);
  MOIETY_CHECK(workers > 0 && slots % workers == 0 && slots >= weights.size(),
               "EPLB needs as many slots on every worker and one for every expert");
  if (nodes == 0 || groups == 0 || groups % nodes != 0 || weights.size() % groups != 0 ||
      workers % nodes != 0) {
    nodes = groups = 1;
  }
  const std::size_t group_size = weights.size() / groups;
  std::vector<double> group_weights(groups, 0);
  for (std::size_t expert = 0; expert < weights.size(); ++expert) {
    group_weights[expert / group_size] += weights[expert];
  }
  std::vector<std::int32_t> expert_of_slot;
  for (const auto& node_groups : balanced_packing(group_weights, nodes)) {
    std::vector<std::size_t> experts;  // of this node
    std::vector<double> node_weights;
    for (std::size_t group : node_groups) {
      for (std::size_t i = 0; i < group_size; ++i) {
        experts.push_back(group * group_size + i);
        node_weights.push_back(weights[experts.back()]);
      }
    }
    const auto copies = replicate(node_weights, slots / nodes);
    for (const auto& pack :
         balanced_packing(load_per_copy(node_weights, copies), workers / nodes)) {
      for (std::size_t copy : pack) {
        expert_of_slot.push_back(static_cast<std::int32_t>(experts[copies[copy]]));
      }
    }
  }
  return expert_of_slot;
}

namespace {

class EplbPlacement {
 public:
  EplbPlacement(const ModelShape& model, const Membership& membership, const PlaceOptions& options)
      : model_(model),
        membership_(membership),
        options_(options),
        num_workers_(options.workers.size()),
        used_(num_workers_, 0) {}

  Result<Placement> run() {
    Placement placement;
    for (const auto& layer : membership_) placement.owners.emplace_back(layer.size());
    // What the first copies of the layers that are still to come need of each worker.
    std::uint64_t reserve = 0;
    for (std::size_t layer = 0; layer < membership_.size(); ++layer) reserve += share(layer);
    for (std::size_t layer = 0; layer < membership_.size(); ++layer) {
      reserve -= share(layer);
      MOIETY_TRY(place_layer(layer, reserve, placement.owners[layer]));
    }
    return placement;
  }

 private:
  std::vector<std::size_t> needed(std::size_t layer) const {
    std::vector<std::size_t> experts;
    for (std::size_t expert = 0; expert < membership_[layer].size(); ++expert) {
      if (membership_[layer][expert] != 0) experts.push_back(expert);
    }
    return experts;
  }

  std::uint64_t share(std::size_t layer) const {
    if (num_workers_ == 0) return 0;
    return (needed(layer).size() + num_workers_ - 1) / num_workers_ *
           model_.layers[layer].expert_bytes;
  }

  double weight(std::size_t layer, std::size_t expert) const {
    return options_.load.empty() ? 1.0 : options_.load[layer][expert];
  }

  Result<void> place_layer(std::size_t layer,
                           std::uint64_t reserve,
                           std::vector<std::vector<WorkerId>>& owners) {
    const std::vector<std::size_t> experts = needed(layer);
    if (experts.empty()) return {};
    const auto groups = static_cast<std::size_t>(std::max(1, options_.eplb_groups));
    const auto nodes = static_cast<std::size_t>(std::max(1, options_.eplb_nodes));
    const std::size_t num_routed = owners.size();
    const bool hierarchical = options_.policy == PlacementPolicy::kEplbHierarchical && nodes > 1 &&
                              groups % nodes == 0 && num_routed % groups == 0 &&
                              num_workers_ % nodes == 0;
    if (!hierarchical) return pack(layer, experts, 0, num_workers_, reserve, owners);

    // Groups of ids onto nodes, by the load of what is kept of them.
    std::vector<double> group_weights(groups, 0);
    const std::size_t group_size = num_routed / groups;
    for (std::size_t expert : experts) group_weights[expert / group_size] += weight(layer, expert);
    const auto node_groups = balanced_packing(group_weights, nodes);
    for (std::size_t node = 0; node < nodes; ++node) {
      std::vector<std::size_t> mine;
      for (std::size_t expert : experts) {
        const auto& of_node = node_groups[node];
        if (std::find(of_node.begin(), of_node.end(), expert / group_size) != of_node.end())
          mine.push_back(expert);
      }
      const std::size_t per_node = num_workers_ / nodes;
      MOIETY_TRY(pack(layer, mine, node * per_node, per_node, reserve, owners));
    }
    return {};
  }

  /// Replicates `experts` and packs the copies onto `count` workers from `first` on.
  Result<void> pack(std::size_t layer,
                    const std::vector<std::size_t>& experts,
                    std::size_t first,
                    std::size_t count,
                    std::uint64_t reserve,
                    std::vector<std::vector<WorkerId>>& owners) {
    if (experts.empty()) return {};
    std::vector<double> weights;
    for (std::size_t expert : experts) weights.push_back(weight(layer, expert));
    std::size_t num_copies =
        experts.size() * static_cast<std::size_t>(std::max(1, options_.replicas));
    if (options_.capacity_per_layer > 0) {
      num_copies = std::min(
          num_copies,
          std::max(experts.size(), count * static_cast<std::size_t>(options_.capacity_per_layer)));
    }
    const auto copies = replicate(weights, num_copies, count);
    const auto load = load_per_copy(weights, copies);
    const std::size_t per_worker = (copies.size() + count - 1) / count;
    const std::uint64_t bytes = model_.layers[layer].expert_bytes;
    std::vector<Pack> packs(count);
    for (std::size_t copy : heaviest_first(load)) {
      const std::size_t expert = experts[copies[copy]];
      std::size_t lightest = count;
      // Evenly first; where capacities differ that may not do.
      for (const bool even : {true, false}) {
        for (std::size_t i = 0; i < count; ++i) {
          const Pack& each = packs[i];
          if (even && each.experts.size() >= per_worker) continue;
          if (!has_room(first + i, each, bytes, reserve)) continue;
          if (std::find(each.experts.begin(), each.experts.end(), expert) != each.experts.end())
            continue;
          if (lightest == count || each.load < packs[lightest].load) lightest = i;
        }
        if (lightest != count) break;
      }
      if (lightest == count) {
        if (!owners[expert].empty()) continue;  // one copy less
        return fail(ErrorCode::kResourceExhausted,
                    "layer " + std::to_string(layer) + ": placement by " +
                        std::string(policy_name(options_.policy)) +
                        " finds no worker with room for expert " + std::to_string(expert) +
                        "; raise the capacity, allow more workers, or place by membership");
      }
      packs[lightest].experts.push_back(expert);
      packs[lightest].load += load[copy];
      used_[first + lightest] += bytes;
      owners[expert].push_back(options_.workers[first + lightest]);
    }
    for (std::size_t expert : experts) std::sort(owners[expert].begin(), owners[expert].end());
    return {};
  }

  bool has_room(std::size_t worker,
                const Pack& pack,
                std::uint64_t bytes,
                std::uint64_t reserve) const {
    const auto slots = static_cast<std::size_t>(options_.capacity_per_layer);
    if (slots > 0 && pack.experts.size() >= slots) return false;
    if (options_.capacity_bytes.empty() || options_.capacity_bytes[worker] == 0) return true;
    return used_[worker] + bytes + reserve <= options_.capacity_bytes[worker];
  }

  const ModelShape& model_;
  const Membership& membership_;
  const PlaceOptions& options_;
  std::size_t num_workers_;
  std::vector<std::uint64_t> used_;  ///< [workers] bytes
};

}  // namespace

Result<Placement> place_by_eplb(const ModelShape& model,
                                const Membership& membership,
                                const PlaceOptions& options) {
  return EplbPlacement(model, membership, options).run();
}

}  // namespace moiety::planner
