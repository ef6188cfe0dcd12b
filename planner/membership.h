#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "common/placement.h"
#include "planner/subset.h"

namespace moiety::planner {

/// A set of deployments as bits. Deployments that keep exactly the same experts share a bit; should
/// more than 64 differ, the last bit stands for all from the 64th on (they are then placed as if
/// they were one).
using Members = std::uint64_t;

constexpr bool is_subset(Members inner, Members outer) { return (inner & ~outer) == 0; }

/// [layer][expert]: who keeps the expert; 0 = cold.
using Membership = std::vector<std::vector<Members>>;

/// Requires `deployments` to fit `model` (resolve_subset and keep_all give such): other sizes or
/// ids are a bug.
Membership membership_of(const ModelShape& model, const std::vector<Deployment>& deployments);

/// Aborts unless `kept` has the layers of `model` and ids in range, ascending.
void check_fits(const ModelShape& model, const KeptExperts& kept);

/// How many experts of one layer have the same members; ascending by members, none cold.
using MemberCounts = std::vector<std::pair<Members, std::int32_t>>;

std::vector<MemberCounts> count_members(const Membership& membership);

}  // namespace moiety::planner
