#pragma once

#include <cstdint>
#include <vector>

#include "common/placement.h"
#include "planner/subset.h"

namespace moiety::planner {

/// The experts that every router shall hold itself, within `bytes`; ascending.
///
/// In each layer those that the most deployments keep come first, of equals the lower id. Layers
/// get equal shares of what is kept of them, so that every layer of a token saves some messages.
std::vector<ExpertId> choose_router_experts(const ModelShape& model,
                                            const std::vector<Deployment>& deployments,
                                            std::uint64_t bytes);

}  // namespace moiety::planner
