#pragma once

#include <memory>

#include "common/result.h"
#include "fabric/lane.h"

namespace moiety::fabric {

/// Lanes over the ranks of one MPI world (Open MPI 4, MPI-3 point to point), for CPU fleets that
/// mpirun or Slurm starts: lowest latency, no growth. A port's address is "mpi:RANK".
///
/// MPI never tells that a rank died. Ranks of one host also hold a Unix socket to each other: it
/// rings a sleeping peer, and its end is a kPeerLost at once. A rank of another host is looked for
/// at intervals (50 us while busy, 10 ms when idle), and only a deadline of the caller sees its
/// death.
///
/// Start the world with `mpirun --enable-recovery`; without it the death of one rank ends them all.
/// A build without MPI has these functions too; they fail with kFailedPrecondition.

/// This process's place in its world.
struct MpiWorld {
  int rank = 0;
  int size = 0;
};

/// Initialises MPI when it is called first; every call gives the same answer. Call it from the main
/// thread; afterwards MPI belongs to the one thread that uses the port or lane. SIGPIPE is ignored
/// from here on. kFailedPrecondition: neither mpirun nor srun started this process, or this build
/// has no MPI.
Result<MpiWorld> join_mpi_world();

/// Opens this rank's port. One port or lane per process at a time. kFailedPrecondition: there is
/// one, or as join_mpi_world().
Result<std::unique_ptr<WorkerPort>> open_mpi_port(const LaneIdentity& identity);

/// Opens this rank's router lane, without connections. Errors as open_mpi_port().
Result<std::unique_ptr<RouterLane>> open_mpi_router_lane(const LaneIdentity& identity);

/// To be called at the end of main() with the exit status, which it returns. Finalises MPI, if it
/// was initialised; where ranks that died keep that from ending within two seconds, it ends the
/// process at once with that status.
int end_mpi(int status);

}  // namespace moiety::fabric
