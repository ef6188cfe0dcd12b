#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "experts/store.h"
#include "planner/subset.h"
#include "router/local_moe.h"

namespace moiety {

/// What the planner needs to know of a checkpoint served as `dtype`.
planner::ModelShape model_shape(const Checkpoint& checkpoint, DType dtype);

/// Reads and resolves a subset file; errors name it.
Result<KeptExperts> load_subset(const std::filesystem::path& file,
                                const planner::ModelShape& shape);

/// The one epoch of a process that holds its experts itself: the full model if wanted, and named
/// subsets. kInvalidArgument: a bad subset file, a bad or repeated name, nothing to serve.
Result<EpochView> embedded_view(
    const planner::ModelShape& shape,
    bool full,
    const std::vector<std::pair<std::string, std::filesystem::path>>& subsets);

/// The experts that any deployment keeps, ascending.
std::vector<ExpertId> needed_experts(const EpochView& view);

}  // namespace moiety
