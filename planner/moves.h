#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "common/placement.h"
#include "common/result.h"
#include "planner/subset.h"

namespace moiety::planner {

/// Splits a change of placement into steps that need no more room than there is.
///
/// In a step every worker loads what the step's placement adds for it, routers switch, and only
/// then copies are dropped that the step's placement does not name: so while a step runs, a worker
/// holds the union of the placement before and after it. The steps given here keep that union
/// within `limit_bytes` on every worker (on a worker that holds more to begin with: nothing is
/// added until it is within).
///
///   from          what the workers hold now and routers use; may have no layers
///   to            where it shall end; the last step equals it
///   limit_bytes   capacity and headroom, for every worker of `to`; absent: no limit
///
/// Every step but the last names owners for all experts that have some in both `from` and `to`, and
/// as many as the smaller of the two counts; so it serves whatever `from` and `to` both serve. An
/// expert may rest on a third worker in between when that is the only way.
///
/// One step if it fits at once; `to` alone if nothing moves. kResourceExhausted: no order was
/// found; names the worker and the bytes that it lacks.
///
/// Until the last step routers hold what they hold in `from` or in `to`.
Result<std::vector<Placement>> split_move(const ModelShape& model,
                                          const Placement& from,
                                          const Placement& to,
                                          const std::map<WorkerId, std::uint64_t>& limit_bytes);

}  // namespace moiety::planner
