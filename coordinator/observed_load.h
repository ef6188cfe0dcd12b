#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "common/ids.h"
#include "common/placement.h"
#include "planner/subset.h"

namespace moiety::coordinator {

/// How busy each expert was lately, all routers together: tokens that selected it, where those of
/// kTimeConstant ago count 1/e of those of now. What a router reported stays when it is gone.
///
/// A statistic, not part of the durable state. While no reports come it stays as it is: nothing
/// else is known.
class ObservedLoad {
 public:
  /// Long against a router's reports (10 s) and bursts of one user's requests, short against the
  /// hours in which what people ask for changes.
  static constexpr std::chrono::minutes kTimeConstant{5};

  explicit ObservedLoad(const planner::ModelShape& model);

  using Counts = std::vector<std::vector<std::uint64_t>>;  ///< [layer][expert]
  /// Whether `counts` has the layers and experts of the model.
  bool fits(const Counts& counts) const;
  /// Adds what one router counted since its last report. Requires fits(counts).
  void add(const Counts& counts, Clock::time_point now);

  /// For PlaceOptions::load; empty before anything was counted. Each expert counts at least a
  /// hundredth of its layer's mean, and a layer without any count is even: so experts that are new
  /// share evenly what the busy ones leave.
  std::vector<std::vector<double>> for_planning() const;

  /// Of all that was counted, decayed; 0 before anything was.
  double share(ExpertId id) const;
  /// By worker id, of `num_workers`: what of the load falls to each, if the owners of an expert
  /// share it evenly. That of experts without owner falls to nobody.
  std::vector<double> shares(const Placement& placement, std::size_t num_workers) const;

 private:
  std::vector<std::vector<double>> tokens_;  // [layer][expert], as of as_of_
  double total_ = 0;                         // of tokens_
  Clock::time_point as_of_;
};

}  // namespace moiety::coordinator
