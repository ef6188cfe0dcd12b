#include "planner/membership.h"

#include <algorithm>
#include <map>

#include "common/check.h"

namespace moiety::planner {

void check_fits(const ModelShape& model, const KeptExperts& kept) {
  MOIETY_CHECK(kept.layers.size() == model.layers.size(),
               "a deployment's layers are not the checkpoint's");
  for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
    std::int32_t previous = -1;
    for (std::int32_t expert : kept.layers[layer]) {
      MOIETY_CHECK(expert > previous && expert < model.layers[layer].num_routed,
                   "a deployment's experts are not ascending ids of the layer");
      previous = expert;
    }
  }
}

Membership membership_of(const ModelShape& model, const std::vector<Deployment>& deployments) {
  std::vector<const KeptExperts*> distinct;
  for (const Deployment& deployment : deployments) {
    check_fits(model, deployment.kept);
    const bool seen = std::any_of(distinct.begin(), distinct.end(), [&](const KeptExperts* other) {
      return other->layers == deployment.kept.layers;
    });
    if (!seen) distinct.push_back(&deployment.kept);
  }

  Membership membership;
  for (const ModelShape::Layer& layer : model.layers) {
    membership.emplace_back(static_cast<std::size_t>(layer.num_routed), 0);
  }
  for (std::size_t i = 0; i < distinct.size(); ++i) {
    const Members bit = Members{1} << std::min<std::size_t>(i, 63);
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
      for (std::int32_t expert : distinct[i]->layers[layer]) {
        membership[layer][static_cast<std::size_t>(expert)] |= bit;
      }
    }
  }
  return membership;
}

std::vector<MemberCounts> count_members(const Membership& membership) {
  std::vector<MemberCounts> layers;
  for (const auto& layer : membership) {
    std::map<Members, std::int32_t> counts;
    for (Members members : layer) {
      if (members != 0) ++counts[members];
    }
    layers.emplace_back(counts.begin(), counts.end());
  }
  return layers;
}

}  // namespace moiety::planner
