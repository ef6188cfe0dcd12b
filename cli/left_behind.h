#pragma once

#include <sys/types.h>

#include <filesystem>
#include <string>
#include <vector>

#include "common/result.h"

namespace moiety::cli {

/// A process that `up` started and that no coordinator takes over: a router, or mpirun.
struct OwnProcess {
  std::string name;  ///< for people: "the router"
  pid_t pid = 0;
  bool operator==(const OwnProcess&) const = default;
};

/// Writes them down (processes.json in the run dir, in place of what it said) with what tells them
/// from later processes of the same number. kIo.
Result<void> write_own_processes(const std::filesystem::path& run_dir,
                                 const std::vector<OwnProcess>& processes);

/// Ends what is written there and still runs: an `up` that was killed left it behind, out of reach
/// of everybody and with its ports. SIGTERM, a grace of 15 s for running requests, then SIGKILL;
/// returns when they are gone. Gives what it ended. Only for who holds the run dir's lock.
std::vector<OwnProcess> end_left_behind(const std::filesystem::path& run_dir);

}  // namespace moiety::cli
