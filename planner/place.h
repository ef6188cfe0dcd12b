#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/placement.h"
#include "common/result.h"
#include "planner/subset.h"

namespace moiety::planner {

/// The experts of one layer that the same deployments keep.
struct ExpertGroup {
  std::vector<std::int32_t> members;  ///< indices into the deployments, ascending; empty = cold
  std::vector<std::int32_t> experts;  ///< ascending
};

/// Groups of every layer, by membership; within a layer ordered by their first expert. Cold groups
/// included.
std::vector<std::vector<ExpertGroup>> group_experts(const ModelShape& model,
                                                    const std::vector<Deployment>& deployments);

enum class PlacementPolicy : std::uint8_t { kMembership, kById, kRoundRobin };
Result<PlacementPolicy> parse_policy(std::string_view name);  ///< "membership", "id", "round_robin"
std::string_view policy_name(PlacementPolicy policy);

struct PlaceOptions {
  PlacementPolicy policy = PlacementPolicy::kMembership;
  /// Workers that may be used, in order of preference (running ones first).
  std::vector<WorkerId> workers;
  /// Experts of one layer that one worker may hold. Uneven counts over layers are fine.
  std::int32_t capacity_per_layer = 0;
};

/// Places every expert that a deployment needs; cold experts get no worker.
///
/// kMembership: layer by layer, the experts that the same deployments keep go to the same workers,
/// so that each deployment needs as few workers as its expert count allows and the fleet as few as
/// the union does; experts that already live on a worker (in `current`, which may be empty) stay
/// there when that costs no worker. kById: expert e of a layer on worker e * num_workers /
/// num_routed (contiguous ranges of ids); kRoundRobin: e modulo the number of workers. Both place
/// over *all* of options.workers and exist to compare with.
///
/// kResourceExhausted: the needed experts of a layer exceed workers * capacity (names layer, counts
/// and what to change).
Result<Placement> place_experts(const ModelShape& model,
                                const std::vector<Deployment>& deployments,
                                const PlaceOptions& options,
                                const Placement& current);

/// What a change of placement costs.
struct MoveCost {
  std::uint64_t bytes_loaded =
      0;  ///< read from the checkpoint by workers that did not hold the expert
  std::uint64_t bytes_dropped = 0;
  std::int64_t experts_loaded = 0;
  std::int64_t experts_dropped = 0;
};
MoveCost move_cost(const ModelShape& model, const Placement& from, const Placement& to);

/// Workers that hold at least one expert of a deployment.
std::vector<WorkerId> workers_of(const Placement& placement, const KeptExperts& kept);

}  // namespace moiety::planner
