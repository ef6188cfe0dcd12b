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

enum class PlacementPolicy : std::uint8_t {
  kMembership,
  kById,
  kRoundRobin,
  kEplb,              ///< EPLB's global algorithm
  kEplbHierarchical,  ///< EPLB's hierarchical algorithm; global where nodes do not divide groups
};
/// "membership", "id", "round_robin", "eplb", "eplb_hierarchical"
Result<PlacementPolicy> parse_policy(std::string_view name);
std::string_view policy_name(PlacementPolicy policy);

struct PlaceOptions {
  PlacementPolicy policy = PlacementPolicy::kMembership;
  /// Workers that may be used, in order of preference (running ones first).
  std::vector<WorkerId> workers;
  /// Experts of one layer that one worker may hold; 0: bytes alone limit it. Uneven counts over
  /// layers are fine.
  std::int32_t capacity_per_layer = 0;
  /// Bytes of experts that each of `workers` may hold; 0: no limit. Empty: no limit for any.
  std::vector<std::uint64_t> capacity_bytes = {};
  /// Copies of every needed expert, on distinct workers, as far as there is room: those that are
  /// in `current` stay (but see follow_load), then experts with the most load first. EPLB's
  /// algorithms take num_needed * replicas slots of a layer and give the extra ones to the experts
  /// with the most load per copy instead.
  std::int32_t replicas = 1;
  /// [layer][expert] estimated share or count of tokens; empty: all equal.
  std::vector<std::vector<double>> load = {};
  /// kMembership: where there is no room for all copies, those of `current` do not stay for their
  /// own sake; the experts with the most load get them. EPLB's algorithms always do so.
  bool follow_load = false;
  /// Experts that routers hold themselves, ascending: no worker gets them.
  std::vector<ExpertId> router_experts = {};
  /// kEplbHierarchical: contiguous equal groups of expert ids; contiguous equal shares of
  /// `workers`.
  std::int32_t eplb_groups = 1;
  std::int32_t eplb_nodes = 1;
};

/// Places every expert that a deployment needs; cold experts get no worker.
///
/// kMembership: layer by layer, the experts that the same deployments keep go to the same workers,
/// so that each deployment needs as few workers as its expert count allows and the fleet as few as
/// the union does; experts that already live on a worker (in `current`, which may be empty) stay
/// there when that costs no worker. kById: expert e of a layer on worker e * num_workers /
/// num_routed (contiguous ranges of ids); kRoundRobin: e modulo the number of workers. These two
/// and EPLB's place over *all* of options.workers and exist to compare with.
///
/// kResourceExhausted: the needed experts (one copy of each) exceed what the workers hold; names
/// what is missing and what to change. Too little room for replicas is no error.
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
  bool operator==(const MoveCost&) const = default;
  MoveCost& operator+=(const MoveCost& other) {
    bytes_loaded += other.bytes_loaded;
    bytes_dropped += other.bytes_dropped;
    experts_loaded += other.experts_loaded;
    experts_dropped += other.experts_dropped;
    return *this;
  }
};
MoveCost move_cost(const ModelShape& model, const Placement& from, const Placement& to);

/// Bytes of the experts that a placement puts on a worker.
std::uint64_t bytes_on(const ModelShape& model, const Placement& placement, WorkerId worker);

/// How many copies of needed experts `placement` has less than `replicas` of each; those that
/// routers hold need none.
std::uint64_t missing_replicas(const std::vector<Deployment>& deployments,
                               const Placement& placement,
                               std::int32_t replicas);

/// Workers that hold at least one expert of a deployment.
std::vector<WorkerId> workers_of(const Placement& placement, const KeptExperts& kept);

}  // namespace moiety::planner
