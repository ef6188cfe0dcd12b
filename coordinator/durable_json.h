#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/placement.h"
#include "common/result.h"

/// The values of the state file that are not columns, as JSON text. Reading checks types and ranges
/// and gives kDataLoss.
namespace moiety::coordinator {

std::string view_to_json(const EpochView& view);
Result<EpochView> view_from_json(std::string_view text);

std::string placement_to_json(const Placement& placement);
Result<Placement> placement_from_json(std::string_view text);

std::string deployments_to_json(const std::vector<Deployment>& deployments);
Result<std::vector<Deployment>> deployments_from_json(std::string_view text);

/// "wait", "mask", "fail"; kInvalidArgument for another word.
std::string_view missing_policy_name(MissingPolicy policy);
Result<MissingPolicy> parse_missing_policy(std::string_view name);

}  // namespace moiety::coordinator
