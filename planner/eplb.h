#pragma once

#include <cstdint>
#include <vector>

#include "common/result.h"
#include "planner/membership.h"
#include "planner/place.h"

/// DeepSeek's EPLB (github.com/deepseek-ai/EPLB): balances the estimated load of one layer's
/// experts over equal workers, with redundant copies of hot experts.
namespace moiety::planner {

struct EplbShape {
  std::int32_t num_slots =
      0;  ///< copies in all; a multiple of num_workers, at least one per expert
  std::int32_t num_groups = 1;   ///< contiguous equal groups of experts
  std::int32_t num_nodes = 1;    ///< contiguous equal shares of the workers
  std::int32_t num_workers = 0;  ///< a multiple of num_nodes
};

/// The published algorithms as they are: [num_slots] the expert in each slot, the slots of worker w
/// from w * num_slots / num_workers on. A worker may get two copies of one expert.
///
/// Hierarchical, when num_nodes divides num_groups (and that divides the experts): groups are
/// packed onto nodes, experts replicated inside their node, copies packed onto the node's workers.
/// Global otherwise: the same with one node and one group.
std::vector<std::int32_t> eplb_balance(const std::vector<double>& weights, const EplbShape& shape);

/// The same idea for what this project needs: only the experts that somebody keeps, counts that
/// divide nothing, copies on distinct workers, capacities per layer and in bytes.
/// kResourceExhausted: a first copy did not fit.
Result<Placement> place_by_eplb(const ModelShape& model,
                                const Membership& membership,
                                const PlaceOptions& options);

}  // namespace moiety::planner
