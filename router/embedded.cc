#include "router/embedded.h"

#include <algorithm>
#include <set>

#include "checkpoint/packed_experts.h"
#include "common/deployment_name.h"
#include "common/file.h"

namespace moiety {

planner::ModelShape model_shape(const Checkpoint& checkpoint, DType dtype) {
  const Architecture& arch = checkpoint.architecture();
  planner::ModelShape shape;
  shape.fingerprint = checkpoint.fingerprint();
  for (std::int32_t layer = 0; layer < arch.num_layers(); ++layer) {
    const MoeDescription& moe = arch.layers[static_cast<std::size_t>(layer)].moe;
    shape.layers.push_back(
        {moe.num_routed, moe.num_shared, moe.top_k, packed_expert_bytes(arch, layer, dtype)});
  }
  return shape;
}

Result<KeptExperts> load_subset(const std::filesystem::path& file,
                                const planner::ModelShape& shape) {
  MOIETY_ASSIGN(const std::string text, read_file(file));
  auto subset = planner::parse_subset(text);
  if (!subset) return with_context(file.string(), subset.error());
  auto kept = planner::resolve_subset(*subset, shape);
  if (!kept) return with_context(file.string(), kept.error());
  return std::move(*kept);
}

Result<EpochView> embedded_view(
    const planner::ModelShape& shape,
    bool full,
    const std::vector<std::pair<std::string, std::filesystem::path>>& subsets) {
  EpochView view;
  view.placement.epoch = Epoch{1};
  if (full) view.deployments.push_back({"", planner::keep_all(shape), false});
  std::set<std::string> names;
  for (const auto& [name, file] : subsets) {
    MOIETY_TRY(check_deployment_name(name));
    if (!names.insert(name).second) {
      return fail(ErrorCode::kInvalidArgument, "deployment name '" + name + "' is given twice");
    }
    MOIETY_ASSIGN(KeptExperts kept, load_subset(file, shape));
    view.deployments.push_back({name, std::move(kept), false});
  }
  if (view.deployments.empty()) {
    return fail(ErrorCode::kInvalidArgument,
                "nothing to serve: leave out --no-full or add --deploy NAME=FILE");
  }
  return view;
}

std::vector<ExpertId> needed_experts(const EpochView& view) {
  std::set<ExpertId> needed;
  for (const Deployment& deployment : view.deployments) {
    for (std::size_t layer = 0; layer < deployment.kept.layers.size(); ++layer) {
      for (std::int32_t expert : deployment.kept.layers[layer]) {
        needed.insert({static_cast<std::int32_t>(layer), expert});
      }
    }
  }
  return {needed.begin(), needed.end()};
}

}  // namespace moiety
