#include "cli/up.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <iostream>
#include <thread>

#include "cli/admin_client.h"
#include "cli/local_cluster.h"
#include "cli/process.h"
#include "common/file.h"
#include "common/flags.h"
#include "common/log.h"
#include "kernels/variant.h"

namespace moiety::cli {
namespace json = boost::json;
namespace {

struct UpFlags {
  LocalClusterOptions cluster;
  bool json = false;
};

json::object describe(const LocalCluster& cluster, bool detached) {
  json::object all{{"api", cluster.api_urls().front()},
                   {"apis", json::array(cluster.api_urls().begin(), cluster.api_urls().end())},
                   {"admin", cluster.admin_url()},
                   {"run_dir", cluster.run_dir().string()},
                   {"coordinator_pid", cluster.coordinator_pid()},
                   {"supervisor_pid", ::getpid()}};
  json::array pids;
  for (pid_t pid : cluster.router_pids()) pids.push_back(pid);
  all["router_pid"] = pids.front();
  all["router_pids"] = std::move(pids);
  all["detached"] = detached;
  return all;
}

/// For people: the status and where everything is.
Result<void> print_cluster(const json::value& cluster, const UpFlags& flags) {
  const auto text = [&](const char* name) { return std::string(cluster.at(name).as_string()); };
  MOIETY_ASSIGN(const json::value status, AdminClient(text("admin")).call("GET", "/v1/status"));
  std::string urls;
  for (const json::value& api : cluster.at("apis").as_array())
    urls += (urls.empty() ? "" : "  ") + std::string(api.as_string()) + "/v1";
  // The commands look at port 8001 unless told otherwise.
  const std::string admin = flags.cluster.admin_port == LocalClusterOptions{}.admin_port
                                ? std::string()
                                : " --admin " + text("admin");
  std::cout << format_status(status) << "\nAPI    " << urls << "\nadmin  " << text("admin")
            << "\nlogs   " << text("run_dir") << "\n"
            << (flags.cluster.detach
                    ? "`moiety status" + admin + "` shows it, `moiety down" + admin + "` ends it\n"
                    : "Ctrl-C ends it\n")
            << std::flush;
  return {};
}

Result<void> print(const json::value& cluster, const UpFlags& flags) {
  if (!flags.json) return print_cluster(cluster, flags);
  print_json(cluster);
  return {};
}

/// Keeps the cluster running until it was ended, by `moiety down` or a signal to us.
Result<void> supervise(LocalCluster& cluster, bool say_ending) {
  std::vector<std::string> events;
  while (!interrupted()) {
    const auto goes_on = cluster.supervise(events);
    for (const std::string& event : events) print_error("moiety", event);
    events.clear();
    Inheritance::reap(cluster.child_pids());
    if (!goes_on) return goes_on.error();  // the destructor ends the rest
    if (!*goes_on) return {};
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  if (say_ending) std::cout << "ending" << std::endl;
  cluster.stop();
  return {};
}

/// Sends stdin, stdout and stderr of this process elsewhere.
Result<void> redirect(const std::filesystem::path& log) {
  const Fd in(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const Fd out(::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (!in || !out)
    return fail(ErrorCode::kIo, log.string() + ": cannot open: " + std::strerror(errno));
  ::dup2(in.get(), STDIN_FILENO);
  ::dup2(out.get(), STDOUT_FILENO);
  ::dup2(out.get(), STDERR_FILENO);
  return {};
}

/// The process that stays behind after `up --detach`: starts the cluster, says through `report` how
/// that went (one JSON value), and supervises it.
int run_detached_supervisor(const UpFlags& flags, const Fd& report) {
  const auto say = [&report](const json::object& what) {
    const std::string text = json::serialize(what);
    return ::write(report.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
  };
  const Inheritance inheritance;
  auto cluster = LocalCluster::start(flags.cluster, !flags.json);
  Result<void> ready;
  if (!cluster) {
    ready = cluster.error();
  } else {
    ready = redirect(cluster->run_dir() / "up.log");
  }
  if (!ready) {
    say({{"code", json::string(error_info(ready.error().code).name)},
         {"message", ready.error().message}});
    return 1;
  }
  // From here on it outlives whoever asked for it. If they are gone, nobody knows of this cluster.
  ::prctl(PR_SET_PDEATHSIG, 0);
  if (!say(describe(*cluster, true))) return 1;
  const auto outcome = supervise(*cluster, false);
  if (outcome) return 0;
  print_error("moiety", outcome.error().message);
  return 1;
}

/// Starts the process that supervises, and returns once the cluster serves.
Result<void> run_detached(const UpFlags& flags) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0)
    return fail(ErrorCode::kIo, std::string("cannot make a pipe: ") + std::strerror(errno));
  Fd from(ends[0]);
  Fd to(ends[1]);
  const pid_t parent = ::getpid();
  std::cout.flush();
  const pid_t supervisor = ::fork();  // no other thread runs yet
  if (supervisor < 0)
    return fail(ErrorCode::kIo, std::string("cannot fork: ") + std::strerror(errno));
  if (supervisor == 0) {
    from = Fd();
    ::setsid();
    std::signal(SIGPIPE, SIG_IGN);
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);  // until it serves
    if (::getppid() != parent) ::_exit(1);
    ::_exit(run_detached_supervisor(flags, to));
  }
  to = Fd();
  std::string text;
  bool asked_to_end = false;
  for (;;) {
    if (interrupted() && !asked_to_end) asked_to_end = ::kill(supervisor, SIGTERM) == 0;
    pollfd ready{from.get(), POLLIN, 0};
    if (::poll(&ready, 1, 50) <= 0) continue;
    char buffer[4096];
    const ssize_t got = ::read(from.get(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    text.append(buffer, static_cast<std::size_t>(got));
    boost::system::error_code unfinished;
    if (json::parse(text, unfinished); !unfinished) break;
  }
  boost::system::error_code ec;
  const json::value said = json::parse(text, ec);
  if (ec) {
    ::waitpid(supervisor, nullptr, 0);
    return fail(ErrorCode::kInternal, "the process that starts the cluster ended unexpectedly");
  }
  if (const json::value* code = said.as_object().if_contains("code")) {
    ::waitpid(supervisor, nullptr, 0);
    return fail(error_code_from_name(std::string(code->as_string())),
                std::string(said.at("message").as_string()));
  }
  return print(said, flags);
}

Result<void> run_up(const UpFlags& flags) {
  if (flags.cluster.detach) return run_detached(flags);
  const Inheritance inheritance;
  MOIETY_ASSIGN(LocalCluster cluster, LocalCluster::start(flags.cluster, !flags.json));
  MOIETY_TRY(print(describe(cluster, false), flags));
  return supervise(cluster, !flags.json);
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
      ->add_option("--routers", cluster.routers,
                   "Routers, on --port and the ports after it (without the admin port)")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command
      ->add_option("--fabric", cluster.fabric,
                   "What carries tokens: ucx (the fleet grows and shrinks), or mpi (routers and "
                   "workers under one mpirun: shared memory, a world that does not grow)")
      ->check(CLI::IsMember({"ucx", "mpi"}))
      ->capture_default_str();
  command
      ->add_option("--replicas", cluster.replicas,
                   "Workers that hold each expert, so that a lost one is replaced within a step")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command
      ->add_option(
          "--capacity", cluster.capacity,
          "Experts per layer that one worker may hold; routed experts / workers unless given")
      ->check(CLI::Range(1, 1 << 30));
  command
      ->add_option("--capacity-bytes", cluster.capacity_bytes,
                   "Bytes of experts that one worker may hold, e.g. 24GiB")
      ->transform(as_bytes());
  command
      ->add_option("--router-expert-bytes", cluster.router_expert_bytes,
                   "Bytes of experts that every router holds itself, e.g. 2GiB; workers hold the "
                   "rest")
      ->transform(as_bytes());
  command
      ->add_option("--move-headroom", cluster.move_headroom,
                   "How far a worker may exceed its capacity while experts move: 0.25 is a quarter")
      ->check(number_in(0, 100));
  command
      ->add_option("--placement", cluster.placement,
                   "membership, id, round_robin, eplb or eplb_hierarchical")
      ->capture_default_str();
  command
      ->add_option("--deploy", cluster.deployments,
                   "NAME=subset.json[,on_missing=wait|mask|fail], served as MODEL:NAME; repeat for "
                   "more")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
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
  command->add_option("--kernels", cluster.kernels, "Kernel variant: " + kernels::variant_choices())
      ->capture_default_str();
  command
      ->add_option("--chat-template", cluster.chat_template,
                   "Chat template (a Jinja file); the model's own unless given")
      ->check(CLI::ExistingFile);
  command
      ->add_option("--generation-config", cluster.generation_config,
                   "auto: requests take what they leave out from the model's "
                   "generation_config.json; none: from the API's defaults")
      ->check(CLI::IsMember({"auto", "none"}));
  command->add_option("--host", cluster.host, "Address of the API")->capture_default_str();
  command
      ->add_option("--port", cluster.port, "Port of the API (of the first router); 0 = free ones")
      ->capture_default_str();
  command->add_option("--admin-port", cluster.admin_port, "Port of the admin API; 0 = a free one")
      ->capture_default_str();
  command
      ->add_option("--router-threads", cluster.router_threads,
                   "Compute threads of each router; 0 = the cores shared among the routers")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command
      ->add_option("--worker-threads", cluster.worker_threads,
                   "Compute threads of each worker; 0 = cores / workers, at least one")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command
      ->add_option("--reply-timeout-ms", cluster.reply_timeout_ms,
                   "A worker that is silent for longer counts as lost, whatever it needed before")
      ->check(CLI::Range(10, 600000))
      ->capture_default_str();
  command
      ->add_option("--least-reply-timeout-ms", cluster.least_reply_timeout_ms,
                   "No worker counts as lost for a shorter silence; between the two it is 8 times "
                   "the p99 of its replies; 1000 unless given")
      ->check(CLI::Range(1, 600000));
  command
      ->add_option("--hedge-after-ms", cluster.hedge_after_ms,
                   "What a worker does not answer for longer, and for longer than twice the p99 of "
                   "the middle worker, is also asked from other owners of the same experts; 0 = "
                   "never; 20 unless given")
      ->check(CLI::Range(0, 600000));
  command
      ->add_option(
          "--micro-batches", cluster.micro_batches,
          "In how many parts a router computes a step: 1, 2, or auto (what was measured to "
          "be faster), as it is unless given")
      ->check(CLI::IsMember({"auto", "1", "2"}));
  command->add_flag("!--no-restart-workers", cluster.restart_workers,
                    "Leave lost workers lost until the next change");
  command->add_option("--run-dir", cluster.run_dir,
                      "Folder for addresses, logs and the cluster's state. A cluster that was "
                      "here before goes on with its deployments, however it ended, and --deploy "
                      "and --no-full are not looked at; see --fresh. Unless given, one below the "
                      "temporary folder, where only a cluster that was killed goes on");
  command->add_flag("--fresh", cluster.fresh,
                    "Delete the state of the cluster that was in the run dir before, end what a "
                    "killed one left running, and begin with what the flags say");
  command->add_flag("-d,--detach", cluster.detach,
                    "Return once it serves; a process stays behind that starts again what dies");
  command->add_flag("--json", flags->json, "Print addresses as JSON");
  command->callback([flags, &chosen] { chosen.run = [flags] { return run_up(*flags); }; });
}

}  // namespace moiety::cli
