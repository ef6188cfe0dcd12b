#pragma once

#include "planner/membership.h"
#include "planner/place.h"

namespace moiety::planner {

/// Gives experts that have one owner in `placement` more, up to options.replicas, each on another
/// worker, as far as there is room.
///
/// A whole second set goes to workers that hold nothing yet, laid out like the first, where that
/// fits. Otherwise expert by expert, and nobody gets a third copy before all have two: first those
/// whose copy is in `current` and may stay (unless options.follow_load), then those with the most
/// load, onto the worker that holds the expert in `current`, else where the fewest deployments come
/// to need one more worker, among those where the layer has the fewest experts. Where the only room
/// left is beside another copy of the same expert, one other copy moves.
///
/// `placement` becomes what `current` leaves of itself (without cold experts and workers that are
/// not offered) when that has all copies, is within the capacities, and needs no more workers, in
/// all and summed over deployments.
void add_replicas(const ModelShape& model,
                  const std::vector<Deployment>& deployments,
                  const Membership& membership,
                  const PlaceOptions& options,
                  const Placement& current,
                  Placement& placement);

}  // namespace moiety::planner
