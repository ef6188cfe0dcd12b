#pragma once

#include <memory>
#include <string>

#include "common/result.h"
#include "fabric/lane.h"

namespace moiety::fabric {

/// Lanes over UCX active messages on TCP, for elastic fleets: peers come and go at run time, and a
/// killed peer is seen within milliseconds. A peer that is stopped (SIGSTOP) or cut off silently is
/// not: that needs a heartbeat.
///
/// UCX is configured in code (TLS=tcp,self, RNDV_THRESH=4m, TCP_TX_SEG_SIZE=128k,
/// TCP_RX_SEG_SIZE=128k); an environment variable UCX_<name> of the process wins. SIGPIPE is
/// ignored from the first open on. Do not fork() after it: exec a new program.

/// Opens a worker's port on a free port number of `bind_host`, a numeric address that routers can
/// reach (not a wildcard), and uses that address's network interface only: UCX would otherwise also
/// try the others (a container bridge, say, which every host has under the same address).
/// kInvalidArgument: not such an address. kIo: cannot listen there.
/// kInternal: UCX does not start.
Result<std::unique_ptr<WorkerPort>> open_ucx_port(const LaneIdentity& identity,
                                                  const std::string& bind_host);

/// Opens a router's lane, without connections. kInternal: UCX does not start.
Result<std::unique_ptr<RouterLane>> open_ucx_router_lane(const LaneIdentity& identity);

}  // namespace moiety::fabric
