#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/placement.h"
#include "common/result.h"

namespace moiety::planner {

/// What the planner needs to know of a checkpoint, without reading one.
struct ModelShape {
  std::string fingerprint;
  struct Layer {
    std::int32_t num_routed = 0;  ///< 0 for a dense layer
    std::int32_t num_shared =
        0;  ///< shared experts in the checkpoint's expert list, after the routed ones
    std::int32_t top_k = 0;          ///< routed experts per token
    std::uint64_t expert_bytes = 0;  ///< bytes of one routed expert as resident on a worker
  };
  std::vector<Layer> layers;
};

/// A subset file, "moiety.subset/1".
struct Subset {
  std::string checkpoint;            ///< fingerprint
  std::vector<std::string> domains;  ///< where it came from; may be empty for hand-made files
  std::string method;                ///< "mean_prob", ...
  /// Original ids, ascending, shared experts *included* (as in EMO's pruning_metadata.json);
  /// nullopt = dense layer.
  std::vector<std::optional<std::vector<std::int32_t>>> experts_kept_per_layer;
};

/// Reads the JSON text of a subset file. kInvalidArgument names the field.
Result<Subset> parse_subset(std::string_view json);
std::string subset_to_json(const Subset& subset);

/// Checks a subset against a checkpoint and gives the routed experts that it keeps.
/// kInvalidArgument: another fingerprint, wrong number of layers, ids out of range or not
/// ascending, a shared expert missing, or fewer routed experts in a layer than a token selects.
Result<KeptExperts> resolve_subset(const Subset& subset, const ModelShape& model);

/// Every routed expert.
KeptExperts keep_all(const ModelShape& model);

}  // namespace moiety::planner
