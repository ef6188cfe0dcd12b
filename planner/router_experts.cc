#include "planner/router_experts.h"

#include <algorithm>

#include "planner/membership.h"

namespace moiety::planner {

std::vector<ExpertId> choose_router_experts(const ModelShape& model,
                                            const std::vector<Deployment>& deployments,
                                            std::uint64_t bytes) {
  for (const Deployment& deployment : deployments) check_fits(model, deployment.kept);
  struct Candidate {
    double share;  // of its layer's kept experts, those before it and itself
    ExpertId id;
  };
  std::vector<Candidate> candidates;
  for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
    std::vector<std::int32_t> keepers(static_cast<std::size_t>(model.layers[layer].num_routed), 0);
    for (const Deployment& deployment : deployments) {
      for (const std::int32_t expert : deployment.kept.layers[layer])
        ++keepers[static_cast<std::size_t>(expert)];
    }
    std::vector<std::size_t> kept;
    for (std::size_t expert = 0; expert < keepers.size(); ++expert) {
      if (keepers[expert] > 0) kept.push_back(expert);
    }
    std::stable_sort(kept.begin(), kept.end(),
                     [&](std::size_t a, std::size_t b) { return keepers[a] > keepers[b]; });
    for (std::size_t rank = 0; rank < kept.size(); ++rank) {
      candidates.push_back(
          {static_cast<double>(rank + 1) / static_cast<double>(kept.size()),
           {static_cast<std::int32_t>(layer), static_cast<std::int32_t>(kept[rank])}});
    }
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.share < b.share; });
  std::vector<ExpertId> chosen;
  for (const Candidate& each : candidates) {
    const std::uint64_t needed = model.layers[static_cast<std::size_t>(each.id.layer)].expert_bytes;
    if (needed > bytes) break;
    bytes -= needed;
    chosen.push_back(each.id);
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

}  // namespace moiety::planner
