#pragma once

#include <cstdint>
#include <vector>

#include "common/placement.h"
#include "planner/membership.h"
#include "planner/subset.h"

/// The second half of placement by membership: which worker takes which type, and which experts of
/// each layer it holds.
namespace moiety::planner {

struct AssignInput {
  const ModelShape& model;
  const Membership& membership;
  const std::vector<Members>&
      types;  ///< from choose_worker_types for the same membership and capacity
  const std::vector<WorkerId>&
      workers;  ///< distinct, in order of preference, at least as many as types
  std::int32_t capacity;
  const Placement& current;  ///< layers as in `model`, or empty
};

/// One worker for every expert that is not cold, on a worker whose type contains its members.
///
/// Types go to workers so that as many bytes as possible may stay where they are (an assignment
/// problem); then, layer by layer, experts stay where they live if their worker's type allows it
/// and others do not need the room, and the rest goes to the emptiest workers that may hold it.
Placement assign_experts(const AssignInput& input);

}  // namespace moiety::planner
