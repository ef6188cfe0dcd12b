#include "tests/golden/golden_support.h"

#include <random>

namespace moiety::testing {

KeptExperts random_kept(const Architecture& arch, std::int32_t keep, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  KeptExperts kept;
  for (const LayerDescription& layer : arch.layers) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(layer.moe.num_routed));
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i);
    std::shuffle(ids.begin(), ids.end(), random);
    ids.resize(static_cast<std::size_t>(std::min(keep, layer.moe.num_routed)));
    std::sort(ids.begin(), ids.end());
    kept.layers.push_back(std::move(ids));
  }
  return kept;
}

}  // namespace moiety::testing
