#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "common/result.h"

namespace moiety::cli {

/// A process of a cluster on this machine.
struct OwnProcess {
  std::string name;  ///< for people: "the router"
  pid_t pid = 0;
  std::uint64_t start_time = 0;  ///< process_start_time(): tells it from later ones of that number
  bool operator==(const OwnProcess&) const = default;
};

/// Writes down which processes no coordinator takes over, routers or mpirun, in place of what was
/// written before (processes.json in the run dir). kIo.
Result<void> write_own_processes(const std::filesystem::path& run_dir,
                                 const std::vector<OwnProcess>& processes);

/// Those of the file, if the machine has not been started anew since. A file that cannot be read
/// names nobody.
std::vector<OwnProcess> read_own_processes(const std::filesystem::path& run_dir);

/// Ends those that still run: an `up` that was killed left them behind, out of reach of everybody
/// and with its ports. SIGTERM, a grace of 15 s for running requests, then SIGKILL; returns when
/// they are gone. Gives what it ended. Only for who holds the run dir's lock.
std::vector<OwnProcess> end_left_behind(const std::vector<OwnProcess>& processes);

}  // namespace moiety::cli
