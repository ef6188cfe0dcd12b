#include "cli/up.h"

#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <iostream>
#include <thread>

#include "cli/admin_client.h"
#include "cli/local_cluster.h"

namespace moiety::cli {
namespace json = boost::json;
namespace {

struct UpFlags {
  LocalClusterOptions cluster;
  bool json = false;
};

Result<void> run_up(const UpFlags& flags) {
  MOIETY_ASSIGN(LocalCluster cluster, LocalCluster::start(flags.cluster, !flags.json));
  MOIETY_ASSIGN(const json::value status,
                AdminClient(cluster.admin_url()).call("GET", "/v1/status"));
  if (flags.json) {
    print_json(json::object{{"api", cluster.api_url()},
                            {"admin", cluster.admin_url()},
                            {"run_dir", cluster.run_dir().string()},
                            {"coordinator_pid", cluster.coordinator_pid()},
                            {"router_pid", cluster.router_pid()}});
  } else {
    // The commands look at port 8001 unless told otherwise.
    const std::string admin = flags.cluster.admin_port == LocalClusterOptions{}.admin_port
                                  ? std::string()
                                  : " --admin " + cluster.admin_url();
    std::cout << format_status(status) << "\nAPI    " << cluster.api_url() << "/v1\nadmin  "
              << cluster.admin_url() << "\nlogs   " << cluster.run_dir().string() << "\n"
              << (flags.cluster.detach ? "`moiety status" + admin + "` shows it, `moiety down" +
                                             admin + "` ends it\n"
                                       : "Ctrl-C ends it\n")
              << std::flush;
  }
  if (flags.cluster.detach) {
    cluster.release();
    return {};
  }
  while (!interrupted()) {
    if (auto ended = cluster.ended()) {
      if (!*ended) return {};  // `moiety down`
      return **ended;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  if (!flags.json) std::cout << "ending" << std::endl;
  cluster.stop();
  return {};
}

}  // namespace

void add_up(CLI::App& app, Chosen& chosen) {
  CLI::App* command = app.add_subcommand("up",
                                         "Start a cluster on this machine: a coordinator, a "
                                         "router, and the workers that the deployments need");
  auto flags = std::make_shared<UpFlags>();
  LocalClusterOptions& cluster = flags->cluster;
  command->add_option("-m,--model", cluster.model,
                      "Checkpoint folder; the bundled one unless given");
  command->add_option("--served-model-name", cluster.served_name,
                      "Name in the API; the model folder's name unless given");
  command->add_option("--workers", cluster.workers, "Most workers that may run")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command
      ->add_option(
          "--capacity", cluster.capacity,
          "Experts per layer that one worker may hold; routed experts / workers unless given")
      ->check(CLI::PositiveNumber);
  command->add_option("--placement", cluster.placement, "membership, id or round_robin")
      ->check(CLI::IsMember({"membership", "id", "round_robin"}))
      ->capture_default_str();
  command->add_option("--deploy", cluster.deployments,
                      "NAME=subset.json, served as MODEL:NAME; repeat for more");
  command->add_flag("!--no-full", cluster.full, "Do not deploy the full model");
  command
      ->add_option("--combine", cluster.combine,
                   "per_worker, or per_expert (the same bits as one process)")
      ->check(CLI::IsMember({"per_worker", "per_expert"}))
      ->capture_default_str();
  command->add_option("--dtype", cluster.dtype, "Weights as bf16 or f32")
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->capture_default_str();
  command
      ->add_option("--expert-dtype", cluster.expert_dtype,
                   "Experts as bf16, f32 or int8 (a scale per output channel); as --dtype unless "
                   "given")
      ->check(CLI::IsMember({"bf16", "f32", "int8"}));
  command
      ->add_option("--kernels", cluster.kernels,
                   "Kernel variant: auto, amx, avx512_bf16, avx512, avx2, plain, reference")
      ->capture_default_str();
  command->add_option("--host", cluster.host, "Address of the API")->capture_default_str();
  command->add_option("--port", cluster.port, "Port of the API; 0 = a free one")
      ->capture_default_str();
  command->add_option("--admin-port", cluster.admin_port, "Port of the admin API; 0 = a free one")
      ->capture_default_str();
  command
      ->add_option("--router-threads", cluster.router_threads,
                   "Compute threads of the router; 0 = one per core")
      ->capture_default_str();
  command
      ->add_option("--worker-threads", cluster.worker_threads,
                   "Compute threads of each worker; 0 = cores shared among them")
      ->capture_default_str();
  command
      ->add_option("--reply-timeout-ms", cluster.reply_timeout_ms,
                   "A worker that is silent for longer counts as lost")
      ->check(CLI::Range(10, 600000))
      ->capture_default_str();
  command->add_flag("!--no-restart-workers", cluster.restart_workers,
                    "Leave lost workers lost until the next change");
  command->add_option("--run-dir", cluster.run_dir,
                      "Folder for addresses and logs; one below the temporary folder unless given");
  command->add_flag("-d,--detach", cluster.detach, "Return once it serves");
  command->add_flag("--json", flags->json, "Print addresses as JSON");
  command->callback([flags, &chosen] { chosen.run = [flags] { return run_up(*flags); }; });
}

}  // namespace moiety::cli
