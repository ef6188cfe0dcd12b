#pragma once

#include <boost/json.hpp>
#include <string>

#include "cli/admin_client.h"
#include "common/result.h"

namespace moiety::cli {

/// Asks the coordinator for a change of the cluster (POST or DELETE) and waits until it is done:
/// the operation as GET /v1/operations/ID gives it. Shows what the change waits for if `progress`.
///
/// The change has an id of ours, so that it can be asked for again: a coordinator that is killed
/// and comes back meanwhile goes on with it, or learns of it then.
///
/// Errors: the operation's own; kCancelled after Ctrl-C and kDeadlineExceeded: the coordinator goes
/// on with the change, and the message says so; kUnavailable: nobody is there, or it did not come
/// back, and the message has the operation's id.
Result<boost::json::value> run_operation(const AdminClient& admin,
                                         const std::string& method,
                                         const std::string& path,
                                         const std::string& body,
                                         bool progress);

}  // namespace moiety::cli
