// `moiety up --fabric mpi`: routers and workers as one world under mpirun.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "cli/local_cluster.h"
#include "common/thread_pool.h"

namespace moiety::cli {

namespace {

using Words = std::vector<std::string>;

Result<std::filesystem::path> find_mpirun() {
  const char* path = std::getenv("PATH");
  std::string_view rest = path == nullptr ? "" : path;
  while (!rest.empty()) {
    const std::string_view folder = rest.substr(0, rest.find(':'));
    rest.remove_prefix(std::min(rest.size(), folder.size() + 1));
    const std::filesystem::path program = std::filesystem::path(folder) / "mpirun";
    if (!folder.empty() && ::access(program.c_str(), X_OK) == 0) return program;
  }
  return fail(ErrorCode::kNotFound,
              "--fabric mpi: mpirun is not in PATH: install Open MPI (openmpi-bin), or use "
              "--fabric ucx");
}

/// One process of the world. Each has flags of its own, so each is an application of its own.
Words process(const std::filesystem::path& program, const Words& flags) {
  Words words = {"-n", "1", "-x", "MOIETY_TOKEN", program.string(), "--fabric", "mpi"};
  words.insert(words.end(), flags.begin(), flags.end());
  return words;
}

}  // namespace

Words worker_words(const LocalClusterOptions& options,
                   const std::filesystem::path& model,
                   const RunFile& info,
                   std::uint32_t worker) {
  std::size_t threads = options.worker_threads;
  if (threads == 0) threads = share_of_cores(options.workers);
  Words words = {"--coordinator", info.control_address,   "--model",   model.string(),
                 "--id",          std::to_string(worker), "--threads", std::to_string(threads),
                 "--dtype",       options.dtype,          "--kernels", options.kernels};
  if (!options.expert_dtype.empty())
    words.insert(words.end(), {"--expert-dtype", options.expert_dtype});
  return words;
}

Result<void> LocalCluster::launch_world(const LocalClusterOptions& options, const RunFile& info) {
  Supervised::Spec spec;
  spec.name = "mpirun";
  MOIETY_ASSIGN(spec.program, find_mpirun());
  MOIETY_ASSIGN(const std::filesystem::path router, sibling_program("moiety-router"));
  MOIETY_ASSIGN(const std::filesystem::path worker, sibling_program("moiety-worker"));
  // --enable-recovery: a dead rank leaves the others alone. Not bound to cores: each has threads.
  spec.arguments = {"--enable-recovery",
                    "--oversubscribe",
                    "--bind-to",
                    "none",
                    "--mca",
                    "mpi_yield_when_idle",
                    "1",
                    "--mca",
                    "pml",
                    "ob1",
                    "--mca",
                    "btl",
                    "self,vader",
                    "--mca",
                    "odls_base_sigkill_timeout",
                    "0"};
  // In a folder of its own, for what a killed world leaves there. Without one, Open MPI finds a
  // place.
  if (auto segments = ScratchDir::make(std::string(kSegments))) {
    segments_.emplace(std::move(*segments));
    spec.arguments.insert(spec.arguments.end(),
                          {"--mca", "btl_vader_backing_directory", segments_->path().string()});
  }
  for (std::uint32_t i = 0; i < options.routers + options.workers; ++i) {
    if (i > 0) spec.arguments.emplace_back(":");
    const Words words =
        i < options.routers
            ? process(router, router_words(options, model_, info, i))
            : process(worker, worker_words(options, model_, info, i - options.routers));
    spec.arguments.insert(spec.arguments.end(), words.begin(), words.end());
  }
  spec.environment = {{"MOIETY_TOKEN", info.token}};
  if (::geteuid() == 0) {
    spec.environment.insert(spec.environment.end(), {{"OMPI_ALLOW_RUN_AS_ROOT", "1"},
                                                     {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"}});
  }
  spec.log = run_dir_ / "mpirun.log";
  spec.lifetime = options.detach ? Lifetime::kDetached : Lifetime::kWithUs;
  others_.emplace_back(std::move(spec));
  MOIETY_TRY(others_.back().start());
  return note_others();
}

}  // namespace moiety::cli
