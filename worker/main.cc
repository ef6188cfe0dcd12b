#include <CLI/CLI.hpp>
#include <cstdlib>

#include "common/descriptors.h"
#include "common/flags.h"
#include "common/guard.h"
#include "common/log.h"
#include "fabric/mpi/mpi_lane.h"
#include "kernels/variant.h"
#include "worker/worker.h"

int main(int argc, char** argv) {
  moiety::raise_descriptor_limit();
  moiety::WorkerOptions options;
  std::string dtype = "bf16";
  std::string expert_dtype;
  CLI::App app(
      "Moiety worker: holds routed experts and computes them for routers. The coordinator starts "
      "it, or, for a coordinator with --fleet static, anybody: by hand, by mpirun, by Slurm. The "
      "cluster's secret comes from the environment variable MOIETY_TOKEN.");
  app.add_option("--coordinator", options.coordinator, "Coordinator's control address, HOST:PORT")
      ->required();
  app.add_option("--model", options.model, "Checkpoint folder")->required();
  app.add_option("--id", options.id,
                 "Worker id, unique in the fleet; the coordinator assigns one unless given");
  app.add_option("--incarnation", options.incarnation,
                 "Differs between starts of one id; the time of the start unless given");
  app.add_option("--fabric", options.fabric,
                 "What carries tokens: ucx (workers come and go), or mpi (this process was started "
                 "by mpirun or srun, in one world with the routers)")
      ->check(CLI::IsMember({"ucx", "mpi"}))
      ->capture_default_str();
  app.add_option("--capacity-bytes", options.capacity_bytes,
                 "Bytes of packed experts that this worker may hold; as the coordinator is set "
                 "unless given")
      ->transform(moiety::as_bytes());
  app.add_option("--bind", options.bind_host, "Address of the lane's port and of /metrics")
      ->capture_default_str();
  app.add_option("--http-port", options.http_port, "Port of /metrics and /health; 0 = a free one")
      ->capture_default_str();
  app.add_option("--threads", options.threads, "Compute threads; 0 = one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--dtype", dtype, "Weights as bf16 or f32")
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->capture_default_str();
  app.add_option(
         "--expert-dtype", expert_dtype,
         "Experts as bf16, f32 or int8 (a scale per output channel); as --dtype unless given")
      ->check(CLI::IsMember({"bf16", "f32", "int8"}));
  app.add_option("--kernels", options.kernels,
                 "Kernel variant: " + moiety::kernels::variant_choices())
      ->capture_default_str();
  app.add_option(
         "--orphan-timeout", options.orphan_timeout_s,
         "Seconds to go on without a coordinator before exiting; 0 = for ever: routers need "
         "only the worker")
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 1;
  }
  if (const char* token = std::getenv("MOIETY_TOKEN")) options.token = token;
  moiety::init_logging(options.id ? "worker " + std::to_string(*options.id) : "worker");
  const auto outcome = moiety::guarded([&]() -> moiety::Result<void> {
    MOIETY_ASSIGN(const moiety::DType dense, moiety::parse_dtype_flag(dtype, false));
    MOIETY_ASSIGN(options.expert_dtype, moiety::expert_dtype_for(dense, expert_dtype));
    return moiety::run_worker(options);
  });
  if (!outcome) {
    moiety::print_error("moiety-worker", outcome.error().message);
    return moiety::fabric::end_mpi(1);
  }
  return moiety::fabric::end_mpi(0);
}
