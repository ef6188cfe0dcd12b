#include "planner/place.h"

#include <algorithm>
#include <map>
#include <set>

#include "common/check.h"
#include "planner/assign.h"
#include "planner/eplb.h"
#include "planner/json_fields.h"
#include "planner/membership.h"
#include "planner/place_bytes.h"
#include "planner/replicas.h"
#include "planner/worker_types.h"

namespace moiety::planner {

namespace {

std::string count_of(std::int64_t count, const std::string& thing) {
  return std::to_string(count) + " " + thing + (count == 1 ? "" : "s");
}

Result<void> check_options(const PlaceOptions& options) {
  const bool in_bytes = !options.capacity_bytes.empty() &&
                        std::all_of(options.capacity_bytes.begin(), options.capacity_bytes.end(),
                                    [](std::uint64_t bytes) { return bytes > 0; });
  if (options.capacity_per_layer < 0 || (options.capacity_per_layer == 0 && !in_bytes)) {
    return fail(ErrorCode::kInvalidArgument,
                "capacity_per_layer: " + std::to_string(options.capacity_per_layer) +
                    "; a worker must hold at least one expert of a layer, or be limited in bytes");
  }
  if (options.replicas < 1) {
    return fail(ErrorCode::kInvalidArgument, "replicas: " + std::to_string(options.replicas) +
                                                 "; there is at least one copy of each expert");
  }
  MOIETY_CHECK(
      options.capacity_bytes.empty() || options.capacity_bytes.size() == options.workers.size(),
      "every worker or none has a capacity in bytes");
  std::set<WorkerId> seen;
  for (WorkerId worker : options.workers) {
    if (!seen.insert(worker).second) {
      return fail(ErrorCode::kInvalidArgument,
                  "workers: worker " + std::to_string(worker.value) + " is listed twice");
    }
  }
  return {};
}

/// kResourceExhausted unless every layer fits all workers together.
Result<void> check_room(const ModelShape& model,
                        const Membership& membership,
                        const PlaceOptions& options) {
  const auto workers = static_cast<std::int64_t>(options.workers.size());
  const std::int64_t capacity = options.capacity_per_layer;
  if (capacity == 0) return {};
  std::int64_t most = 0;
  std::size_t fullest = 0;
  std::uint64_t missing_bytes = 0;
  for (std::size_t layer = 0; layer < membership.size(); ++layer) {
    const auto& members = membership[layer];
    const std::int64_t needed =
        std::count_if(members.begin(), members.end(), [](Members who) { return who != 0; });
    if (needed > workers * capacity) {
      missing_bytes += static_cast<std::uint64_t>(needed - workers * capacity) *
                       model.layers[layer].expert_bytes;
    }
    if (needed > most) {
      most = needed;
      fullest = layer;
    }
  }
  if (most <= workers * capacity) return {};
  std::string advice = "allow " + count_of((most + capacity - 1) / capacity, "worker");
  if (workers > 0) {
    advice += ", a capacity of " + std::to_string((most + workers - 1) / workers);
  }
  return fail(ErrorCode::kResourceExhausted,
              "layer " + std::to_string(fullest) + " needs " + count_of(most, "expert") + ", but " +
                  count_of(workers, "worker") + " of " + std::to_string(capacity) +
                  " per layer hold " + std::to_string(workers * capacity) +
                  "; over all layers room for " + std::to_string(missing_bytes) +
                  " bytes is missing; " + advice + ", or deploy less");
}

/// kById and kRoundRobin: a fixed rule on the id. Further copies go to the workers after the first.
Result<Placement> place_by_rule(const ModelShape& model,
                                const Membership& membership,
                                const PlaceOptions& options) {
  const std::size_t num_workers = options.workers.size();
  Placement placement;
  for (const auto& layer : membership) placement.owners.emplace_back(layer.size());
  std::vector<std::uint64_t> used(num_workers, 0);
  std::vector<std::vector<std::int32_t>> load(membership.size(),
                                              std::vector<std::int32_t>(num_workers, 0));
  const auto copies = std::min(static_cast<std::size_t>(options.replicas), num_workers);
  for (std::size_t copy = 0; copy < copies; ++copy) {
    for (std::size_t layer = 0; layer < membership.size(); ++layer) {
      const std::size_t num_routed = membership[layer].size();
      const std::uint64_t bytes = model.layers[layer].expert_bytes;
      for (std::size_t expert = 0; expert < num_routed; ++expert) {
        if (membership[layer][expert] == 0) continue;
        const std::size_t first = options.policy == PlacementPolicy::kById
                                      ? expert * num_workers / num_routed
                                      : expert % num_workers;
        const std::size_t index = (first + copy) % num_workers;
        const std::uint64_t capacity =
            options.capacity_bytes.empty() ? 0 : options.capacity_bytes[index];
        const bool fits =
            (options.capacity_per_layer == 0 || load[layer][index] < options.capacity_per_layer) &&
            (capacity == 0 || used[index] + bytes <= capacity);
        if (!fits && copy > 0) continue;
        if (!fits) {
          return fail(ErrorCode::kResourceExhausted,
                      "layer " + std::to_string(layer) + ": placement by " +
                          std::string(policy_name(options.policy)) + " gives worker " +
                          std::to_string(options.workers[index].value) + " more than the " +
                          (load[layer][index] == options.capacity_per_layer
                               ? std::to_string(options.capacity_per_layer) + " experts"
                               : std::to_string(capacity) + " bytes") +
                          " that it may hold; raise the capacity, allow more workers, or "
                          "place by membership");
        }
        ++load[layer][index];
        used[index] += bytes;
        placement.owners[layer][expert].push_back(options.workers[index]);
      }
    }
  }
  for (auto& layer : placement.owners) {
    for (auto& owners : layer) std::sort(owners.begin(), owners.end());
  }
  return placement;
}

bool same_layers(const ModelShape& model, const Placement& placement) {
  return std::equal(placement.owners.begin(), placement.owners.end(), model.layers.begin(),
                    model.layers.end(), [](const auto& owners, const ModelShape::Layer& layer) {
                      return owners.size() == static_cast<std::size_t>(layer.num_routed);
                    });
}

}  // namespace

std::vector<std::vector<ExpertGroup>> group_experts(const ModelShape& model,
                                                    const std::vector<Deployment>& deployments) {
  for (const Deployment& deployment : deployments) check_fits(model, deployment.kept);
  std::vector<std::vector<ExpertGroup>> layers;
  for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
    std::vector<std::vector<std::int32_t>> members(
        static_cast<std::size_t>(model.layers[layer].num_routed));
    for (std::size_t index = 0; index < deployments.size(); ++index) {
      for (std::int32_t expert : deployments[index].kept.layers[layer]) {
        members[static_cast<std::size_t>(expert)].push_back(static_cast<std::int32_t>(index));
      }
    }
    auto& groups = layers.emplace_back();
    std::map<std::vector<std::int32_t>, std::size_t> group_of;
    for (std::size_t expert = 0; expert < members.size(); ++expert) {
      const auto [entry, is_new] = group_of.try_emplace(members[expert], groups.size());
      if (is_new) groups.push_back({members[expert], {}});
      groups[entry->second].experts.push_back(static_cast<std::int32_t>(expert));
    }
  }
  return layers;
}

Result<PlacementPolicy> parse_policy(std::string_view name) {
  for (PlacementPolicy policy :
       {PlacementPolicy::kMembership, PlacementPolicy::kById, PlacementPolicy::kRoundRobin,
        PlacementPolicy::kEplb, PlacementPolicy::kEplbHierarchical}) {
    if (name == policy_name(policy)) return policy;
  }
  return fail(ErrorCode::kInvalidArgument,
              "placement policy: " + quoted(name) +
                  " is unknown; use membership, id, round_robin, eplb or eplb_hierarchical");
}

std::string_view policy_name(PlacementPolicy policy) {
  switch (policy) {
    case PlacementPolicy::kMembership:
      return "membership";
    case PlacementPolicy::kById:
      return "id";
    case PlacementPolicy::kRoundRobin:
      return "round_robin";
    case PlacementPolicy::kEplb:
      return "eplb";
    case PlacementPolicy::kEplbHierarchical:
      return "eplb_hierarchical";
  }
  MOIETY_CHECK(false, "not a placement policy");
}

Result<Placement> place_experts(const ModelShape& model,
                                const std::vector<Deployment>& deployments,
                                const PlaceOptions& options,
                                const Placement& current) {
  MOIETY_TRY(check_options(options));
  MOIETY_CHECK(current.owners.empty() || same_layers(model, current),
               "the current placement is of another checkpoint");
  for (std::size_t layer = 0; layer < options.load.size(); ++layer) {
    MOIETY_CHECK(
        options.load.size() == model.layers.size() &&
            options.load[layer].size() == static_cast<std::size_t>(model.layers[layer].num_routed),
        "the load is of another checkpoint");
  }
  Membership membership = membership_of(model, deployments);
  for (const ExpertId id : options.router_experts)
    membership.at(static_cast<std::size_t>(id.layer)).at(static_cast<std::size_t>(id.expert)) = 0;

  if (options.policy == PlacementPolicy::kMembership) {
    MOIETY_ASSIGN(Placement placement, place_one_copy(model, membership, options, current));
    if (options.replicas > 1)
      add_replicas(model, deployments, membership, options, current, placement);
    placement.router_experts = options.router_experts;
    return placement;
  }
  MOIETY_TRY(check_room(model, membership, options));
  const bool by_rule =
      options.policy == PlacementPolicy::kById || options.policy == PlacementPolicy::kRoundRobin;
  MOIETY_ASSIGN(Placement placement, by_rule ? place_by_rule(model, membership, options)
                                             : place_by_eplb(model, membership, options));
  placement.epoch = current.epoch;
  placement.router_experts = options.router_experts;
  return placement;
}

Result<Placement> place_one_copy(const ModelShape& model,
                                 const Membership& membership,
                                 const PlaceOptions& options,
                                 const Placement& current) {
  MOIETY_TRY(check_room(model, membership, options));
  const bool in_bytes = std::any_of(options.capacity_bytes.begin(), options.capacity_bytes.end(),
                                    [](std::uint64_t bytes) { return bytes > 0; });
  if (in_bytes) return place_by_bytes(model, membership, options, current);
  const auto types = choose_worker_types(count_members(membership), options.capacity_per_layer);
  return assign_experts(
      {model, membership, types, options.workers, options.capacity_per_layer, current});
}

std::uint64_t bytes_on(const ModelShape& model, const Placement& placement, WorkerId worker) {
  std::uint64_t bytes = 0;
  for (ExpertId id : placement.experts_of(worker)) {
    bytes += model.layers[static_cast<std::size_t>(id.layer)].expert_bytes;
  }
  return bytes;
}

std::uint64_t missing_replicas(const std::vector<Deployment>& deployments,
                               const Placement& placement,
                               std::int32_t replicas) {
  std::set<ExpertId> needed;
  for (const Deployment& deployment : deployments) {
    for (std::size_t layer = 0; layer < deployment.kept.layers.size(); ++layer) {
      for (std::int32_t expert : deployment.kept.layers[layer])
        needed.insert({static_cast<std::int32_t>(layer), expert});
    }
  }
  for (const ExpertId id : placement.router_experts) needed.erase(id);
  std::uint64_t missing = 0;
  for (ExpertId id : needed) {
    const std::size_t owners =
        placement.owners[static_cast<std::size_t>(id.layer)][static_cast<std::size_t>(id.expert)]
            .size();
    missing += static_cast<std::uint64_t>(
        std::max<std::int64_t>(0, std::int64_t{replicas} - static_cast<std::int64_t>(owners)));
  }
  return missing;
}

MoveCost move_cost(const ModelShape& model, const Placement& from, const Placement& to) {
  MOIETY_CHECK(from.owners.empty() || same_layers(model, from),
               "the old placement is of another checkpoint");
  MOIETY_CHECK(to.owners.empty() || same_layers(model, to),
               "the new placement is of another checkpoint");
  static const std::vector<WorkerId> kNobody;
  MoveCost cost;
  for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
    const std::uint64_t bytes = model.layers[layer].expert_bytes;
    for (std::size_t expert = 0; expert < static_cast<std::size_t>(model.layers[layer].num_routed);
         ++expert) {
      const auto& before = from.owners.empty() ? kNobody : from.owners[layer][expert];
      const auto& after = to.owners.empty() ? kNobody : to.owners[layer][expert];
      const auto missing_in = [](const std::vector<WorkerId>& owners) {
        return [&owners](WorkerId worker) {
          return std::find(owners.begin(), owners.end(), worker) == owners.end();
        };
      };
      const auto loaded = std::count_if(after.begin(), after.end(), missing_in(before));
      const auto dropped = std::count_if(before.begin(), before.end(), missing_in(after));
      cost.experts_loaded += loaded;
      cost.experts_dropped += dropped;
      cost.bytes_loaded += static_cast<std::uint64_t>(loaded) * bytes;
      cost.bytes_dropped += static_cast<std::uint64_t>(dropped) * bytes;
    }
  }
  return cost;
}

std::vector<WorkerId> workers_of(const Placement& placement, const KeptExperts& kept) {
  std::set<WorkerId> workers;
  const std::size_t num_layers = std::min(placement.owners.size(), kept.layers.size());
  for (std::size_t layer = 0; layer < num_layers; ++layer) {
    const auto& owners = placement.owners[layer];
    for (std::int32_t expert : kept.layers[layer]) {
      if (static_cast<std::size_t>(expert) >= owners.size()) continue;
      const auto& holders = owners[static_cast<std::size_t>(expert)];
      workers.insert(holders.begin(), holders.end());
    }
  }
  return {workers.begin(), workers.end()};
}

}  // namespace moiety::planner
