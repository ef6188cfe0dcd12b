#include "fabric/mpi/world.h"

#include <mpi.h>
#include <signal.h>
#include <sys/prctl.h>

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "common/log.h"

namespace moiety::fabric {
namespace {

/// MPI_Finalize waits for all ranks, for ever where one died with messages under way.
constexpr std::chrono::seconds kFinalizeLimit{2};

std::optional<MpiWorld> joined;  // main thread only
std::atomic<bool> in_use{false};

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool started_by_a_launcher() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"}) {
    if (!environment(name).empty()) return true;
  }
  return false;
}

void ignore_broken_pipes() {
  struct sigaction present = {};
  if (sigaction(SIGPIPE, nullptr, &present) != 0 || present.sa_handler != SIG_DFL) return;
  present.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &present, nullptr);
}

}  // namespace

Result<MpiWorld> join_mpi_world() {
  if (joined) return *joined;
  if (!started_by_a_launcher()) {
    return fail(ErrorCode::kFailedPrecondition,
                "MPI lanes need a process that mpirun or srun started (mpirun --enable-recovery "
                "-n 1 moiety-router ... : -n 4 moiety-worker ...); or use --fabric ucx");
  }
  ignore_broken_pipes();
  // Waits inside MPI give the core to another rank: there may be more ranks than cores.
  setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
  int provided = MPI_THREAD_SINGLE;
  if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided) != MPI_SUCCESS ||
      provided < MPI_THREAD_SERIALIZED) {
    return fail(ErrorCode::kInternal, "MPI does not start with MPI_THREAD_SERIALIZED");
  }
  // Without its launcher a rank is aborted a second later. At once, it meets no rank of a next
  // world at the coordinator.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MpiWorld world;
  MPI_Comm_rank(MPI_COMM_WORLD, &world.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &world.size);
  joined = world;
  return world;
}

int end_mpi(int status) {
  if (!joined) return status;
  struct Progress {
    std::mutex mutex;
    std::condition_variable changed;
    bool finished = false;
  };
  const auto progress = std::make_shared<Progress>();
  std::thread([progress] {
    MPI_Finalize();
    const std::lock_guard lock(progress->mutex);
    progress->finished = true;
    progress->changed.notify_one();
  }).detach();
  std::unique_lock lock(progress->mutex);
  if (progress->changed.wait_for(lock, kFinalizeLimit, [&] { return progress->finished; })) {
    joined.reset();
    return status;
  }
  log_warning("MPI does not finish: ranks of this world died or still run; leaving without it");
  std::fflush(nullptr);
  std::_Exit(status);
}

namespace mpi {

std::string world_name() {
  for (const char* name : {"PMIX_NAMESPACE", "OMPI_MCA_orte_ess_jobid"}) {
    if (std::string value = environment(name); !value.empty()) return value;
  }
  const std::string job = environment("SLURM_JOB_ID");
  return job.empty() ? "" : job + "." + environment("SLURM_STEP_ID");
}

bool acquire() { return !in_use.exchange(true); }
void release() { in_use = false; }

}  // namespace mpi
}  // namespace moiety::fabric
