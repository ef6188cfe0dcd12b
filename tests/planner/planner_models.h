#pragma once

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "planner/place.h"

/// Small checkpoints and random subsets for the planner's tests.
namespace moiety::planner {

inline ModelShape uniform_model(std::size_t num_layers, std::int32_t num_routed) {
  ModelShape model;
  model.fingerprint = "f00d";
  model.layers.assign(num_layers, {num_routed, 1, std::min(num_routed, 3), 1000});
  return model;
}

/// `count` random experts of every layer that has some.
inline KeptExperts random_kept(const ModelShape& model, std::int32_t count, std::mt19937& random) {
  KeptExperts kept;
  for (const auto& layer : model.layers) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(layer.num_routed));
    std::iota(ids.begin(), ids.end(), 0);
    // std::shuffle differs between libraries; this does not.
    for (std::size_t i = ids.size(); i > 1; --i) std::swap(ids[i - 1], ids[random() % i]);
    ids.resize(std::min(ids.size(), static_cast<std::size_t>(count)));
    std::sort(ids.begin(), ids.end());
    kept.layers.push_back(ids);
  }
  return kept;
}

inline PlaceOptions options_of(std::uint32_t num_workers,
                               std::int32_t capacity,
                               PlacementPolicy policy = PlacementPolicy::kMembership) {
  PlaceOptions options{.policy = policy, .workers = {}, .capacity_per_layer = capacity};
  for (std::uint32_t id = 0; id < num_workers; ++id) options.workers.push_back({id});
  return options;
}

/// The most experts of a layer that any of `deployments` needs, in workers: no fleet can be
/// smaller.
inline std::size_t least_workers(const ModelShape& model,
                                 const std::vector<Deployment>& deployments,
                                 std::int32_t capacity) {
  std::size_t most = 0;
  for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
    std::set<std::int32_t> needed;
    for (const auto& deployment : deployments) {
      needed.insert(deployment.kept.layers[layer].begin(), deployment.kept.layers[layer].end());
    }
    most = std::max(most, needed.size());
  }
  const auto room = static_cast<std::size_t>(capacity);
  return (most + room - 1) / room;
}

/// What is wrong with a placement, or nothing: every needed expert on one allowed worker (up to
/// options.replicas of them, distinct), cold ones nowhere, no worker over its capacity.
inline std::string placement_fault(const ModelShape& model,
                                   const std::vector<Deployment>& deployments,
                                   const PlaceOptions& options,
                                   const Placement& placement) {
  if (placement.owners.size() != model.layers.size()) return "wrong number of layers";
  for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
    const std::string where = "layer " + std::to_string(layer);
    const auto num_routed = static_cast<std::size_t>(model.layers[layer].num_routed);
    if (placement.owners[layer].size() != num_routed) return where + ": wrong number of experts";
    std::set<std::int32_t> needed;
    for (const auto& deployment : deployments) {
      needed.insert(deployment.kept.layers[layer].begin(), deployment.kept.layers[layer].end());
    }
    std::map<WorkerId, std::int32_t> load;
    const auto most = static_cast<std::size_t>(std::max(1, options.replicas));
    // EPLB gives hot experts more.
    const bool free_count = options.policy == PlacementPolicy::kEplb ||
                            options.policy == PlacementPolicy::kEplbHierarchical;
    for (std::size_t expert = 0; expert < num_routed; ++expert) {
      const auto& owners = placement.owners[layer][expert];
      const std::size_t expected = needed.count(static_cast<std::int32_t>(expert));
      const bool right = owners.size() >= expected &&
                         (owners.size() <= expected * most || (free_count && expected > 0));
      if (!std::is_sorted(owners.begin(), owners.end()) ||
          std::adjacent_find(owners.begin(), owners.end()) != owners.end()) {
        return where + " expert " + std::to_string(expert) + ": owners not ascending";
      }
      if (!right) {
        return where + " expert " + std::to_string(expert) + ": " + std::to_string(owners.size()) +
               " owners, expected " + std::to_string(expected);
      }
      for (WorkerId owner : owners) {
        if (std::count(options.workers.begin(), options.workers.end(), owner) == 0) {
          return where + ": a worker that was not offered";
        }
        ++load[owner];
        if (options.capacity_per_layer > 0 && load[owner] > options.capacity_per_layer)
          return where + ": a worker over capacity";
      }
    }
  }
  for (std::size_t i = 0; i < options.capacity_bytes.size(); ++i) {
    const std::uint64_t held = bytes_on(model, placement, options.workers[i]);
    if (options.capacity_bytes[i] > 0 && held > options.capacity_bytes[i])
      return "worker " + std::to_string(options.workers[i].value) + ": more bytes than it may hold";
  }
  return "";
}

}  // namespace moiety::planner
