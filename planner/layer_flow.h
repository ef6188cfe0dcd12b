#pragma once

#include <cstdint>
#include <vector>

#include "planner/membership.h"

namespace moiety::planner {

/// Workers of one type.
struct TypePool {
  Members type = 0;
  std::int32_t num_workers = 0;
  std::int32_t slots = 0;  ///< experts of a layer that they may hold together
};

/// Experts of one layer with the same members.
struct GroupDemand {
  Members members = 0;
  std::int32_t count = 0;
  std::vector<std::int32_t> living;  ///< [pools] experts that live there now and may stay; at most
                                     ///< `slots` in all of a pool
};

/// How many experts of each group go to each pool: [groups][pools]. A group goes only where members
/// is a subset of type. Experts stay where they live as far as the others can be placed without
/// their room (by cheapest augmenting paths); new ones go to the pool with the least experts per
/// worker. Requires that the groups fit.
std::vector<std::vector<std::int32_t>> distribute(const std::vector<GroupDemand>& groups,
                                                  const std::vector<TypePool>& pools);

}  // namespace moiety::planner
