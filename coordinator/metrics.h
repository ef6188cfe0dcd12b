#pragma once

#include <string>

#include "coordinator/status.h"

namespace moiety::coordinator {

/// GET /metrics: the status as Prometheus text. Counters come from the state machine, so that a
/// page and a status of the same moment agree.
std::string metrics_text(const ClusterStatus& status);

}  // namespace moiety::coordinator
