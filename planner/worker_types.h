#pragma once

#include <cstdint>
#include <vector>

#include "planner/membership.h"

/// The global half of placement by membership: how many workers, and which deployments each may
/// serve.
///
/// A worker's *type* is the set of deployments that may need it. An expert kept by deployments M
/// fits a worker of type T if M is a subset of T: then no other deployment is made to need that
/// worker. Types are the same in every layer, which is what lets whole workers go when a deployment
/// goes.
namespace moiety::planner {

/// Types of the fewest workers that hold every layer's experts, `capacity` (> 0) of a layer each;
/// every layer can then be placed so that each expert is on a worker whose type contains its
/// members.
///
/// Deployments that keep all the others keep (the full model) are laid around the rest: without
/// them, the types are those that the rest alone would get. Then the sum over deployments of the
/// workers each may need is minimised: for up to kMaxExact deployments of a shell by a search over
/// exact conditions, beyond by a greedy. Workers come in a fixed order: those that serve the
/// innermost deployments first.
std::vector<Members> choose_worker_types(const std::vector<MemberCounts>& layers,
                                         std::int32_t capacity);

inline constexpr int kMaxExact = 4;

}  // namespace moiety::planner
