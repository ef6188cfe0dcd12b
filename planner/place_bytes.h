#pragma once

#include "common/result.h"
#include "planner/membership.h"
#include "planner/place.h"

namespace moiety::planner {

/// Placement by membership, one copy of each needed expert (options.replicas is not looked at),
/// with whichever capacities `options` has. kResourceExhausted as place_experts.
Result<Placement> place_one_copy(const ModelShape& model,
                                 const Membership& membership,
                                 const PlaceOptions& options,
                                 const Placement& current);

/// The same where workers are limited in bytes, each by its own number (and perhaps per layer too).
///
/// Types (see worker_types.h) are found for the sum over layers, in units of bytes. Then experts go
/// to workers whose type allows them, those with the least choice first: where they live if there
/// is room, else where the layer has the fewest bytes for the worker's size. The last few that do
/// not fit so go anywhere. One more worker is used when they do not fit at all.
Result<Placement> place_by_bytes(const ModelShape& model,
                                 const Membership& membership,
                                 const PlaceOptions& options,
                                 const Placement& current);

}  // namespace moiety::planner
