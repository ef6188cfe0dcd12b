#include "common/deployment_name.h"

#include <fmt/core.h>

#include <algorithm>

namespace moiety {

Result<void> check_deployment_name(std::string_view name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  if (!name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), allowed)) {
    return {};
  }
  return fail(
      ErrorCode::kInvalidArgument,
      fmt::format("name '{}': a deployment's name is 1 to 64 letters, digits, '.', '_' or '-'",
                  name));
}

std::string served_as(std::string_view served_name, std::string_view deployment) {
  std::string name(served_name);
  return deployment.empty() ? name : name.append(":").append(deployment);
}

}  // namespace moiety
