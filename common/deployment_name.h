#pragma once

#include <string>
#include <string_view>

#include "common/result.h"

namespace moiety {

/// kInvalidArgument unless `name` is a deployment's own name: 1 to 64 of A-Z a-z 0-9 . _ -
Result<void> check_deployment_name(std::string_view name);

/// What the API calls a deployment: "MODEL" for the full model (""), else "MODEL:NAME".
std::string served_as(std::string_view served_name, std::string_view deployment);

}  // namespace moiety
