#include "coordinator/options.h"

#include <CLI/CLI.hpp>
#include <iostream>

#include "common/address.h"
#include "common/flags.h"
#include "coordinator/durable_json.h"

namespace moiety::coordinator {

namespace {

Result<DeployFlag> parse_deploy(const std::string& text) {
  const std::size_t equals = text.find('=');
  DeployFlag deploy;
  if (equals != std::string::npos) {
    deploy.name = text.substr(0, equals);
    std::string file = text.substr(equals + 1);
    static constexpr std::string_view kOnMissing = ",on_missing=";
    if (const std::size_t at = file.rfind(kOnMissing); at != std::string::npos) {
      auto policy = parse_missing_policy(file.substr(at + kOnMissing.size()));
      if (!policy) return with_context("--deploy " + text, policy.error());
      deploy.on_missing = *policy;
      file.erase(at);
    }
    deploy.file = file;
  }
  if (deploy.name.empty() || deploy.file.empty()) {
    return fail(ErrorCode::kInvalidArgument,
                "--deploy " + text +
                    ": give NAME=FILE, a name and a subset file, and perhaps "
                    ",on_missing=wait|mask|fail");
  }
  return deploy;
}

Result<void> parse_listen(const std::string& text, Options& options) {
  auto address = parse_address(text);
  if (!address) return with_context("--listen " + text, address.error());
  options.listen_host = std::move(address->host);
  options.listen_port = address->port;
  return {};
}

}  // namespace

Result<std::optional<Options>> parse_options(int argc, const char* const* argv) {
  Options options;
  std::vector<std::string> deploy;
  std::string listen = "127.0.0.1:0";
  std::string placement = "membership";
  std::string dtype = "bf16";
  std::string expert_dtype;
  std::string fleet = "local";
  CLI::App app(
      "The coordinator of a Moiety cluster: starts and stops the workers of this machine (or lets "
      "in those that somebody else starts), places experts on them, tells routers where they are, "
      "and serves the admin API.\n"
      "Peers show a shared secret: MOIETY_TOKEN or --token-file, else a random one that local "
      "workers are given and coordinator.json names. What it decided survives in --state: started "
      "again, it goes on with the deployments and the workers that it had. MOIETY_LOG sets the log "
      "level (debug, info, warning, error).",
      "moiety-coordinator");
  app.add_option("-m,--model", options.model, "Checkpoint folder")->required();
  app.add_option("--served-model-name", options.served_name,
                 "Name in the API; the model folder's name unless given");
  app.add_option("--workers", options.workers, "Most workers that may run")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--capacity", options.capacity,
                 "Experts of one layer that a worker may hold; routed experts / workers, rounded "
                 "up, unless given")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--capacity-bytes", options.capacity_bytes,
                 "Bytes of experts that a worker may hold, e.g. 24GiB; unless it says so itself")
      ->transform(as_bytes());
  app.add_option(
         "--move-headroom", options.move_headroom,
         "How far a worker may exceed its capacity while experts move or while it stands in "
         "for a lost worker: 0.25 (the default) is a quarter. In a static fleet the default is "
         "enough for the others to stand in for one lost worker")
      ->check(number_in(0, 100));
  app.add_option("--replicas", options.replicas,
                 "Workers that hold each expert, as far as there is room")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--router-expert-bytes", options.router_expert_bytes,
                 "Bytes of experts that every router holds itself, e.g. 2GiB: those that the most "
                 "deployments keep, equally of all layers; workers hold the rest")
      ->transform(as_bytes())
      ->capture_default_str();
  app.add_option("--fleet", fleet,
                 "local: starts and stops the workers, on this machine. static: somebody else "
                 "starts them, anywhere (mpirun included)")
      ->check(CLI::IsMember({"local", "static"}))
      ->capture_default_str();
  app.add_option("--fabric", options.fabric,
                 "What carries tokens between routers and workers; mpi needs --fleet static")
      ->check(CLI::IsMember({"ucx", "mpi"}))
      ->capture_default_str();
  app.add_option("--placement", placement,
                 "Where experts live: by membership (those that the same deployments keep "
                 "together), id, round_robin, eplb or eplb_hierarchical")
      ->check(CLI::IsMember({"membership", "id", "round_robin", "eplb", "eplb_hierarchical"}))
      ->capture_default_str();
  app.add_option("--eplb-groups", options.eplb_groups,
                 "eplb_hierarchical: contiguous groups of experts that stay on one node")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--eplb-nodes", options.eplb_nodes,
                 "eplb_hierarchical: nodes, contiguous equal shares of the workers")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option(
         "--deploy", deploy,
         "NAME=FILE[,on_missing=wait|mask|fail]: a deployment to begin with, its subset "
         "file, and what requests do while its experts are lost; repeatable. A cluster that "
         "is taken up from --state keeps its own")
      ->type_name("NAME=FILE")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_flag("!--no-full", options.full, "Do not deploy the full model");
  app.add_option("--listen", listen, "Address for workers and routers; port 0 picks a free one")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  app.add_option("--admin-host", options.admin_host, "Address of the admin API")
      ->capture_default_str();
  app.add_option("--admin-port", options.admin_port, "Port of the admin API; 0 picks a free one")
      ->capture_default_str();
  app.add_option("--lease-ttl-ms", options.lease_ttl_ms,
                 "A worker or router that is silent for so long is taken for lost; they report "
                 "every third of it")
      ->check(CLI::Range(300, 600000))
      ->capture_default_str();
  app.add_option("--operation-timeout-s", options.operation_timeout_s,
                 "A deploy or undeploy that takes longer is undone and fails")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
  app.add_option("--drain-timeout-s", options.drain_timeout_s,
                 "How long an undeploy waits for running requests, before the rest of it")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
  app.add_option("--shutdown-grace-s", options.shutdown_grace_s,
                 "At shutdown, how long routers may finish requests")
      ->check(CLI::Range(0, 86400))
      ->capture_default_str();
  app.add_option("--dtype", dtype, "Weights and GEMM inputs as bf16 or f32")
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->capture_default_str();
  app.add_option("--expert-dtype", expert_dtype,
                 "The workers' experts as bf16, f32 or int8; as --dtype unless given")
      ->check(CLI::IsMember({"bf16", "f32", "int8"}));
  app.add_option("--kernels", options.kernels, "Kernel variant of the workers")
      ->capture_default_str();
  app.add_option("--threads-per-worker", options.threads_per_worker,
                 "Compute threads of a worker; cores / workers, at least 1, unless given")
      ->check(CLI::Range(1, 1024));
  app.add_flag("!--no-restart-workers", options.restart_workers,
               "Leave a lost worker away until the next deploy or undeploy");
  app.add_option("--worker-binary", options.worker_binary,
                 "Program of a worker; moiety-worker beside this one unless given");
  app.add_option(
         "--worker-orphan-timeout-s", options.worker_orphan_timeout_s,
         "Seconds that local workers go on without a coordinator; 0 = for ever, the default "
         "with a state file, by which the next coordinator takes them over; 60 without")
      ->check(CLI::Range(0, 86400 * 30));
  app.add_option("--run-dir", options.run_dir,
                 "Folder for coordinator.json (addresses, token), state and logs");
  app.add_option("--state", options.state,
                 "File that keeps deployments, placement, epochs and operations; "
                 "RUN_DIR/state.sqlite unless given, without a run dir nothing is kept");
  app.add_option("--log-dir", options.log_dir,
                 "Folder for worker-ID.log; --run-dir unless given, without both stderr");
  app.add_option("--token-file", options.token_file, "File that holds the shared secret");

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    std::cout << app.help();
    return std::optional<Options>{};
  } catch (const CLI::ParseError& error) {
    return fail(ErrorCode::kInvalidArgument, std::string(error.what()) + " (see --help)");
  }
  MOIETY_ASSIGN(options.dtype, parse_dtype_flag(dtype, false));
  MOIETY_ASSIGN(options.expert_dtype, expert_dtype_for(options.dtype, expert_dtype));
  MOIETY_ASSIGN(options.placement, planner::parse_policy(placement));
  for (const std::string& each : deploy) {
    MOIETY_ASSIGN(auto parsed, parse_deploy(each));
    options.deploy.push_back(std::move(parsed));
  }
  MOIETY_TRY(parse_listen(listen, options));
  options.fleet = fleet == "static" ? FleetKind::kStatic : FleetKind::kLocal;
  if (options.fabric == "mpi" && options.fleet != FleetKind::kStatic) {
    return fail(ErrorCode::kInvalidArgument,
                "--fabric mpi: mpirun starts the workers of an mpi world: give --fleet static");
  }
  return std::optional<Options>(std::move(options));
}

}  // namespace moiety::coordinator
