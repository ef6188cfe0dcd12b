#include <csignal>
#include <cstdio>
#include <memory>

#include "common/guard.h"
#include "common/log.h"
#include "common/signals.h"
#include "coordinator/options.h"
#include "coordinator/runtime.h"
#include "coordinator/setup.h"

namespace {

using namespace moiety;
using namespace moiety::coordinator;

RuntimeOptions runtime_options(const Options& options, const Setup& setup) {
  RuntimeOptions runtime;
  runtime.control.host = options.listen_host;
  runtime.control.port = options.listen_port;
  runtime.admin.host = options.admin_host;
  runtime.admin.port = options.admin_port;
  runtime.run_dir = options.run_dir;
  runtime.first = setup.first;
  runtime.make_fleet = [&options, &setup](const std::string& control_address) {
    return std::make_unique<LocalFleet>(local_workers(options, setup, control_address));
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

  // Checkpoint, subsets, token: whatever can be wrong with the input shows here.
  MOIETY_ASSIGN(const Setup setup, prepare(*options));

  // Before the first thread, so that every thread leaves the signals to the watcher.
  Runtime runtime(setup.cluster, runtime_options(*options, setup));
  const SignalWatcher signals([&runtime](int signal) {
    runtime.shut_down(signal == SIGINT ? "interrupted (SIGINT)" : "asked to end (SIGTERM)");
  });

  // Listens, starts workers for the first deployments, serves; returns when all of it has ended.
  return runtime.run();
}

}  // namespace

int main(int argc, char** argv) {
  const auto outcome = guarded([&] { return run(argc, argv); });
  if (outcome) return 0;
  std::fprintf(stderr, "moiety-coordinator: %s\n", outcome.error().message.c_str());
  return 1;
}
