#include <csignal>
#include <cstdio>
#include <memory>

#include "common/address.h"
#include "common/descriptors.h"
#include "common/guard.h"
#include "common/log.h"
#include "common/signals.h"
#include "coordinator/options.h"
#include "coordinator/runtime.h"
#include "coordinator/setup.h"
#include "coordinator/static_fleet.h"

namespace {

using namespace moiety;
using namespace moiety::coordinator;

/// Tells people how to start the workers of a static fleet.
void print_how_to_join(const Options& options, const Setup& setup, const RunInfo& info) {
  std::printf(
      "moiety-coordinator: waiting for workers that you start, up to %u of them:\n"
      "  MOIETY_TOKEN=... %smoiety-worker --fabric %s --coordinator %s --model %s --dtype %s "
      "--expert-dtype %s\n"
      "on other hosts with this machine's name and --bind with the host's own; %s\n",
      options.workers, options.fabric == "mpi" ? "mpirun ... " : "", options.fabric.c_str(),
      info.control_address.c_str(), setup.model.c_str(),
      std::string(dtype_flag(options.dtype)).c_str(),
      std::string(dtype_flag(options.expert_dtype)).c_str(),
      options.run_dir.empty()
          ? "MOIETY_TOKEN is the secret that this process was started with"
          : ("the secret is \"token\" in " + (options.run_dir / "coordinator.json").string())
                .c_str());
  std::fflush(stdout);
}

std::unique_ptr<Fleet> make_fleet(const Options& options,
                                  const Setup& setup,
                                  const std::string& control_address) {
  if (options.fleet == FleetKind::kStatic) return std::make_unique<StaticFleet>();
  return std::make_unique<LocalFleet>(local_workers(options, setup, control_address));
}

RuntimeOptions runtime_options(const Options& options, Setup& setup) {
  RuntimeOptions runtime;
  runtime.control.host = options.listen_host;
  runtime.control.port = options.listen_port;
  runtime.admin.host = options.admin_host;
  runtime.admin.port = options.admin_port;
  runtime.admin_token = !is_loopback(options.admin_host);
  runtime.run_dir = options.run_dir;
  runtime.first = setup.first;
  if (setup.store) runtime.store.emplace(std::move(*setup.store));
  runtime.make_fleet = [&options, &setup](const std::string& control_address) {
    return make_fleet(options, setup, control_address);
  };
  runtime.on_listening = [&options, &setup](const RunInfo& info) {
    if (options.fleet == FleetKind::kStatic) print_how_to_join(options, setup, info);
  };
  runtime.on_ready = [](const RunInfo& info) {
    std::printf("moiety-coordinator: %s is ready; admin API on http://%s\n",
                info.served_name.c_str(), info.admin_address.c_str());
    std::fflush(stdout);
  };
  return runtime;
}

Result<void> run(int argc, char** argv) {
  MOIETY_ASSIGN(const auto options, parse_options(argc, argv));
  if (!options) return {};  // --help

  init_logging("coordinator");
  std::signal(SIGPIPE, SIG_IGN);

  // Checkpoint, subsets, token, state file: whatever can be wrong with the input shows here.
  MOIETY_ASSIGN(Setup setup, prepare(*options));

  // Before the first thread, so that every thread leaves the signals to the watcher.
  Runtime runtime(setup.cluster, runtime_options(*options, setup));
  const SignalWatcher signals([&runtime](int signal) {
    runtime.shut_down(signal == SIGINT ? "interrupted (SIGINT)" : "asked to end (SIGTERM)");
  });

  // Listens, takes up what an earlier coordinator left or starts workers for the first deployments,
  // serves; returns when all of it has ended.
  return runtime.run();
}

}  // namespace

int main(int argc, char** argv) {
  raise_descriptor_limit();
  const auto outcome = guarded([&] { return run(argc, argv); });
  if (outcome) return 0;
  print_error("moiety-coordinator", outcome.error().message);
  return 1;
}
