#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace moiety::cli {

/// Where the folders of MPI worlds in shared memory are made: their names begin so.
inline constexpr std::string_view kSegments = "/dev/shm/moiety-mpi";

/// A process of a cluster on this machine.
struct OwnProcess {
  std::string name;  ///< for people: "the router"
  pid_t pid = 0;
  std::uint64_t start_time = 0;  ///< process_start_time(): tells it from later ones of that number
  bool operator==(const OwnProcess&) const = default;
};

/// What is not there any more after an orderly end, and what no coordinator takes over.
struct LeftBehind {
  std::vector<OwnProcess> processes;  ///< routers, or mpirun
  std::filesystem::path segments;     ///< an MPI world's folder in shared memory; empty: none
  bool operator==(const LeftBehind&) const = default;
};

/// Writes it down, in place of what was written before (processes.json in the run dir). kIo.
Result<void> write_left_behind(const std::filesystem::path& run_dir, const LeftBehind& left);

/// Ends the processes of the file that still run and removes the segments: an `up` that was killed
/// left them, out of reach of everybody and with its ports. Gives what it ended. Nothing if the
/// machine was started anew since, or the file cannot be read. Only for who holds the run dir's
/// lock.
std::vector<OwnProcess> end_left_behind(const std::filesystem::path& run_dir);

/// SIGTERM, a grace of 15 s for running requests, then SIGKILL; returns when they are gone. Gives
/// those that still ran.
std::vector<OwnProcess> end_processes(const std::vector<OwnProcess>& processes);

}  // namespace moiety::cli
