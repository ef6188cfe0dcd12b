#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>

#include "common/guard.h"
#include "common/log.h"
#include "worker/worker.h"

int main(int argc, char** argv) {
  moiety::WorkerOptions options;
  std::string dtype = "bf16";
  std::string expert_dtype;
  CLI::App app(
      "Moiety worker: holds routed experts and computes them for routers. The coordinator starts "
      "it. The cluster's secret comes from the environment variable MOIETY_TOKEN.");
  app.add_option("--coordinator", options.coordinator, "Coordinator's control address, HOST:PORT")
      ->required();
  app.add_option("--model", options.model, "Checkpoint folder")->required();
  app.add_option("--id", options.id, "Worker id, unique in the fleet")->required();
  app.add_option("--incarnation", options.incarnation, "Differs between restarts of one id")
      ->capture_default_str();
  app.add_option("--bind", options.bind_host, "Address of the lane's port and of /metrics")
      ->capture_default_str();
  app.add_option("--http-port", options.http_port, "Port of /metrics and /health; 0 = a free one")
      ->capture_default_str();
  app.add_option("--threads", options.threads, "Compute threads; 0 = one per core")
      ->capture_default_str();
  app.add_option("--dtype", dtype, "Weights as bf16 or f32")
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->capture_default_str();
  app.add_option(
         "--expert-dtype", expert_dtype,
         "Experts as bf16, f32 or int8 (a scale per output channel); as --dtype unless given")
      ->check(CLI::IsMember({"bf16", "f32", "int8"}));
  app.add_option("--kernels", options.kernels,
                 "Kernel variant: auto, amx, avx512_bf16, avx512, avx2, plain, reference")
      ->capture_default_str();
  app.add_option("--orphan-timeout", options.orphan_timeout_s,
                 "Seconds to go on without a coordinator before exiting; 0 = for ever")
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 1;
  }
  if (const char* token = std::getenv("MOIETY_TOKEN")) options.token = token;
  moiety::init_logging("worker " + std::to_string(options.id));
  const auto outcome = moiety::guarded([&]() -> moiety::Result<void> {
    MOIETY_ASSIGN(const moiety::DType dense, moiety::parse_dtype_flag(dtype, false));
    MOIETY_ASSIGN(options.expert_dtype, moiety::expert_dtype_for(dense, expert_dtype));
    return moiety::run_worker(options);
  });
  if (!outcome) {
    std::fprintf(stderr, "moiety-worker: %s\n", outcome.error().message.c_str());
    return 1;
  }
  return 0;
}
