#pragma once

#include <deque>
#include <string>

#include "coordinator/status.h"

/// The admin API's answers as JSON text.
namespace moiety::coordinator {

/// One line of the decision log.
struct Decision {
  std::string time;  ///< ISO 8601, UTC
  std::string text;
};

/// GET /v1/status
std::string status_json(const ClusterStatus& status, const std::deque<Decision>& decisions);
/// GET /v1/deployments
std::string deployments_json(const ClusterStatus& status);
/// GET /v1/operations/ID and the answers of POST and DELETE
std::string operation_json(const OperationStatus& operation, const std::string& served_name);
/// 202: {"operation_id": ID}
std::string accepted_json(OperationId id);

}  // namespace moiety::coordinator
