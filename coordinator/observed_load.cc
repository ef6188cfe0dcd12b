#include "coordinator/observed_load.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/check.h"

namespace moiety::coordinator {

namespace {

constexpr double kUnseenShare = 0.01;  // of the layer's mean

}  // namespace

ObservedLoad::ObservedLoad(const planner::ModelShape& model) {
  for (const auto& layer : model.layers)
    tokens_.emplace_back(static_cast<std::size_t>(layer.num_routed), 0.0);
}

bool ObservedLoad::fits(const Counts& counts) const {
  return std::equal(
      counts.begin(), counts.end(), tokens_.begin(), tokens_.end(),
      [](const auto& layer, const auto& tokens) { return layer.size() == tokens.size(); });
}

void ObservedLoad::add(const Counts& counts, Clock::time_point now) {
  MOIETY_CHECK(fits(counts), "the load is of another checkpoint");
  using Seconds = std::chrono::duration<double>;
  const double kept = total_ == 0 ? 0 : std::exp(Seconds(as_of_ - now) / Seconds(kTimeConstant));
  as_of_ = now;
  total_ = 0;
  for (std::size_t layer = 0; layer < tokens_.size(); ++layer) {
    for (std::size_t expert = 0; expert < tokens_[layer].size(); ++expert) {
      double& tokens = tokens_[layer][expert];
      tokens = tokens * kept + static_cast<double>(counts[layer][expert]);
      total_ += tokens;
    }
  }
}

std::vector<std::vector<double>> ObservedLoad::for_planning() const {
  if (total_ == 0) return {};
  std::vector<std::vector<double>> load = tokens_;
  for (auto& layer : load) {
    const double sum = std::accumulate(layer.begin(), layer.end(), 0.0);
    const double unseen = sum == 0 ? 1 : kUnseenShare * sum / static_cast<double>(layer.size());
    for (double& tokens : layer) tokens = std::max(tokens, unseen);
  }
  return load;
}

double ObservedLoad::share(ExpertId id) const {
  if (total_ == 0) return 0;
  return tokens_[static_cast<std::size_t>(id.layer)][static_cast<std::size_t>(id.expert)] / total_;
}

std::vector<double> ObservedLoad::shares(const Placement& placement,
                                         std::size_t num_workers) const {
  std::vector<double> shares(num_workers, 0.0);
  if (total_ == 0) return shares;
  for (std::size_t layer = 0; layer < placement.owners.size(); ++layer) {
    for (std::size_t expert = 0; expert < placement.owners[layer].size(); ++expert) {
      const auto& owners = placement.owners[layer][expert];
      for (WorkerId owner : owners)
        shares[owner.value] += tokens_[layer][expert] / total_ / static_cast<double>(owners.size());
    }
  }
  return shares;
}

}  // namespace moiety::coordinator
