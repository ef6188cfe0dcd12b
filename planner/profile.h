#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "planner/subset.h"

namespace moiety::planner {

/// Statistics of one domain's calibration text on one checkpoint.
struct DomainProfile {
  std::int64_t tokens = 0;
  std::string text_sha256;  ///< of the calibration file's bytes
  /// Mean over tokens of softmax(gate logits) over the routed experts: [layers][num_routed];
  /// nullopt = dense layer.
  std::vector<std::optional<std::vector<double>>> mean_prob;
};

/// A profile file, "moiety.profile/1".
struct Profile {
  std::string checkpoint;  ///< fingerprint
  /// Expert counts of the checkpoint's layers (all zero for a dense one), so that selecting needs
  /// no checkpoint. The file has no bytes: expert_bytes is 0. Empty for a file without them.
  std::vector<ModelShape::Layer> layers;
  std::map<std::string, DomainProfile> domains;
};

Result<Profile> parse_profile(std::string_view json);
std::string profile_to_json(const Profile& profile);

/// The checkpoint's shape as far as the profile says it; kInvalidArgument when it does not.
Result<ModelShape> shape_of(const Profile& profile);

/// Keeps, in every layer, the `keep` experts with the highest mean gate probability of each domain,
/// and gives the union over the domains. `keep` counts the checkpoint's expert list, shared experts
/// included (K = 16 of EMO keeps 15 routed and the shared one). Ties go to the lower id. kNotFound:
/// a domain that the profile lacks (names those it has); kInvalidArgument: keep out of range,
/// another checkpoint, wrong shapes.
Result<Subset> select_experts(const Profile& profile,
                              const ModelShape& model,
                              const std::vector<std::string>& domains,
                              std::int32_t keep);

}  // namespace moiety::planner
