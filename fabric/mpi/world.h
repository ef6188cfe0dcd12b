#pragma once

#include <string>

#include "fabric/mpi/mpi_lane.h"

namespace moiety::fabric::mpi {

/// Names this world on this host: the same in all its ranks, different for other worlds. Empty when
/// the launcher gave none; then there are no doorbells.
std::string world_name();

/// Takes the right to use MPI in this process; false while somebody has it.
bool acquire();
void release();

}  // namespace moiety::fabric::mpi
