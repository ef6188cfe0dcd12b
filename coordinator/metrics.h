#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "common/log.h"
#include "coordinator/status.h"

namespace moiety::coordinator {

/// What the runtime counts, since the coordinator started.
struct RuntimeCounts {
  /// Upper bounds of the histogram of persists, in seconds; the last bucket has none.
  static constexpr std::array kBounds = {0.0005, 0.001, 0.002, 0.005, 0.01, 0.02,
                                         0.05,   0.1,   0.2,   0.5,   1.0};
  std::array<std::uint64_t, kBounds.size() + 1> persists{};
  double persist_seconds = 0;
  std::uint64_t persist_failures = 0;
  std::uint64_t refused_changes = 0;  ///< before they became operations
  std::map<LogLevel, std::uint64_t> decisions;
  std::uint64_t workers_adopted = 0;

  void add_persist(std::chrono::duration<double> took);
};

/// GET /metrics: the status as Prometheus text. Counters of the cluster come from the state
/// machine, so that a page and a status of the same moment agree.
std::string metrics_text(const ClusterStatus& status, const RuntimeCounts& counts);

}  // namespace moiety::coordinator
