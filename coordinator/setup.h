#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/result.h"
#include "coordinator/admin_api.h"
#include "coordinator/local_fleet.h"
#include "coordinator/options.h"
#include "coordinator/state.h"
#include "coordinator/store.h"

namespace moiety::coordinator {

/// All that a coordinator needs before it opens a socket or starts a process.
struct Setup {
  ClusterConfig cluster;
  std::vector<Deployment> first;  ///< deployments to begin with
  std::string worker_binary;
  std::filesystem::path model;  ///< absolute
  std::uint32_t threads_per_worker = 1;
  std::optional<Store> store;  ///< --state, with what was found in it
};

/// Opens the checkpoint and the state file, reads and checks the subset files, settles defaults and
/// the token (given, else the one of the state file, else a random one). kInvalidArgument and
/// kNotFound say which flag or file; Store::open has further errors.
Result<Setup> prepare(const Options& options);

/// Command line and environment of the local workers, which connect to `control_address`.
LocalFleet::Options local_workers(const Options& options,
                                  const Setup& setup,
                                  std::string control_address);

}  // namespace moiety::coordinator
