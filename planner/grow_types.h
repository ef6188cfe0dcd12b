#pragma once

#include <cstdint>
#include <vector>

#include "planner/membership.h"

namespace moiety::planner {

/// Worker types (see worker_types.h) for any number of deployments: a greedy over all layers that
/// lets a worker's type grow where it grows least, then empties single deployments out of workers
/// while that is possible. Exactly `num_workers` types; requires num_workers * capacity to hold
/// every layer.
std::vector<Members> grow_worker_types(const std::vector<MemberCounts>& layers,
                                       std::int32_t capacity,
                                       std::int32_t num_workers);

/// The same for workers of different sizes: capacities[worker], of every layer. The types are in
/// the order of the workers.
std::vector<Members> grow_worker_types(const std::vector<MemberCounts>& layers,
                                       const std::vector<std::int32_t>& capacities);

}  // namespace moiety::planner
