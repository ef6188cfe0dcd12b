#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>

#include "common/log.h"
#include "coordinator/status.h"

/// The admin API's answers as JSON text.
namespace moiety::coordinator {

/// One line of the decision log.
struct Decision {
  std::uint64_t number = 0;  ///< from 1; every line has the next one
  std::string time;          ///< ISO 8601, UTC
  LogLevel level = LogLevel::kInfo;
  std::string text;
};

/// What the coordinator's own process knows beside its state machine.
struct RuntimeStatus {
  std::string state_file;  ///< empty: nothing is kept
  bool restored = false;   ///< it went on with what an earlier coordinator had
  /// Why nothing can be written to the state file now; changes are refused meanwhile.
  std::optional<Error> blocked;
};

/// "info", "warning", "error", "debug"
std::string_view level_name(LogLevel level);

/// GET /v1/status; with the latest decisions
std::string status_json(const ClusterStatus& status,
                        const RuntimeStatus& runtime,
                        const std::deque<Decision>& decisions);
/// GET /v1/deployments
std::string deployments_json(const ClusterStatus& status);
/// GET /v1/placement; `view` may be null before the first epoch
std::string placement_json(const EpochView* view);
/// GET /v1/decisions: those with a number above `after`
std::string decisions_json(const std::deque<Decision>& decisions, std::uint64_t after);
/// GET /v1/operations/ID and the answers of changes
std::string operation_json(const OperationStatus& operation, const std::string& served_name);
/// GET /v1/operations
std::string operations_json(const ClusterStatus& status);
/// 202: {"operation_id": ID}
std::string accepted_json(const OperationId& id);

}  // namespace moiety::coordinator
