#include <CLI/CLI.hpp>
#include <cstdlib>

#include "common/descriptors.h"
#include "common/guard.h"
#include "common/log.h"
#include "fabric/mpi/mpi_lane.h"
#include "router/options.h"

int main(int argc, char** argv) {
  moiety::raise_descriptor_limit();
  using moiety::CombineMode;
  moiety::RouterOptions options;
  CLI::App app(
      "Moiety router: the HTTP endpoint and the dense part of the model. With --coordinator it "
      "dispatches tokens to the "
      "cluster's workers, without it holds the experts itself (embedded mode). The cluster's "
      "secret comes from the "
      "environment variable MOIETY_TOKEN.");
  moiety::add_router_flags(app, options);
  app.add_option("--coordinator", options.coordinator, "Coordinator's control address, HOST:PORT");
  app.add_option(
      "--id", options.id,
      "Router id, unique in the cluster, at most 2147483647; the coordinator assigns one "
      "unless given");
  app.add_option("--fabric", options.fabric,
                 "What carries tokens to workers: ucx (they come and go), or mpi (this process was "
                 "started by mpirun or srun, in one world with them)")
      ->check(CLI::IsMember({"ucx", "mpi"}))
      ->capture_default_str();
  app.add_option_function<std::string>(
         "--combine",
         [&options](const std::string& name) {
           options.combine =
               name == "per_expert" ? CombineMode::kPerExpert : CombineMode::kPerWorker;
         },
         "per_worker (default): one row per token and worker; per_expert: the same bits as "
         "embedded mode")
      ->check(CLI::IsMember({"per_worker", "per_expert"}));
  app.add_option("--expert-dtype", options.expert_dtype,
                 "Experts that this router holds, as bf16, f32 or int8; as --dtype unless given")
      ->check(CLI::IsMember({"bf16", "f32", "int8"}));
  app.add_option("--reply-timeout-ms", options.reply_timeout_ms,
                 "A worker that is silent for longer counts as lost, whatever it needed before")
      ->check(CLI::Range(10, 600000))
      ->capture_default_str();
  app.add_option("--least-reply-timeout-ms", options.least_reply_timeout_ms,
                 "No worker counts as lost for a shorter silence; between the two it is 8 times "
                 "the p99 of its replies")
      ->check(CLI::Range(1, 600000))
      ->capture_default_str();
  app.add_option(
         "--hedge-after-ms", options.hedge_after_ms,
         "What takes longer than twice the p99 of the middle worker, and longer than this, is "
         "also asked from other owners of the same experts; 0 = never")
      ->check(CLI::Range(0, 600000))
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
  moiety::init_logging(options.id ? "router " + std::to_string(*options.id) : "router");
  const auto outcome = moiety::guarded([&] { return moiety::run_router(options, {}); });
  if (!outcome) {
    moiety::print_error("moiety-router", outcome.error().message);
    return moiety::fabric::end_mpi(1);
  }
  return moiety::fabric::end_mpi(0);
}
