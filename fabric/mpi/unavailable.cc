#include "fabric/mpi/mpi_lane.h"

// Stands in for the MPI lanes in a build without MPI.
namespace moiety::fabric {
namespace {

Error no_mpi() {
  return fail(ErrorCode::kFailedPrecondition,
              "this build has no MPI: install libopenmpi-dev and build again, or use --fabric ucx");
}

}  // namespace

Result<MpiWorld> join_mpi_world() { return no_mpi(); }
Result<std::unique_ptr<WorkerPort>> open_mpi_port(const LaneIdentity&) { return no_mpi(); }
Result<std::unique_ptr<RouterLane>> open_mpi_router_lane(const LaneIdentity&) { return no_mpi(); }
int end_mpi(int status) { return status; }

}  // namespace moiety::fabric
