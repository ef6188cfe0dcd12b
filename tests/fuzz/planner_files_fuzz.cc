// Subset and profile files from outside: what is accepted is written and read back the same.
#include <cstddef>
#include <cstdint>

#include "common/check.h"
#include "planner/profile.h"
#include "planner/subset.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moiety::planner;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto subset = parse_subset(text)) {
    const std::string written = subset_to_json(*subset);
    const auto again = parse_subset(written);
    MOIETY_CHECK(again && subset_to_json(*again) == written, "a subset does not come back");
  }
  if (const auto profile = parse_profile(text)) {
    const std::string written = profile_to_json(*profile);
    const auto again = parse_profile(written);
    MOIETY_CHECK(again && profile_to_json(*again) == written, "a profile does not come back");
    const auto shape = shape_of(*profile);
    if (!shape) return 0;
    std::vector<std::string> domains;
    for (const auto& [name, domain] : profile->domains) domains.push_back(name);
    const auto subset = select_experts(*profile, *shape, domains, 1);
    if (subset) (void)resolve_subset(*subset, *shape);
  }
  return 0;
}
