#include "cli/local_cluster.h"

#include <signal.h>

#include <algorithm>
#include <cerrno>
#include <iostream>
#include <thread>

#include "cli/admin_client.h"
#include "cli/router_ports.h"
#include "common/ids.h"
#include "common/process_start.h"
#include "common/thread_pool.h"
#include "coordinator/stand_ins.h"
#include "http/client.h"

namespace moiety::cli {
namespace {

constexpr std::chrono::seconds kStartTimeout{120};
constexpr std::chrono::milliseconds kPoll{20};
constexpr std::chrono::seconds kStopGrace{15};
constexpr std::chrono::seconds kCallTimeout{2};

// An MPI world that has lost workers, and experts with them, is given so long to help itself: a
// worker that hangs may come back, the coordinator moves experts after a lease.
constexpr std::chrono::seconds kWorldPatience{5};
static_assert(kWorldPatience >= 2 * coordinator::kNoStandInAfterFailure,
              "a worker that could not load what it should stand in with tries again first");
constexpr std::chrono::seconds kLookAtWorld{1};

// Without a coordinator, and with nobody who starts another one, workers and routers end after this
// long: soon where somebody sits in front of it, else when it is unlikely that anybody comes back.
constexpr std::chrono::seconds kOrphanTimeout{60};
constexpr std::chrono::hours kDetachedOrphanTimeout{1};

using Words = std::vector<std::string>;

void add(Words& words, std::initializer_list<std::string> more) { words.insert(words.end(), more); }

Words coordinator_words(const LocalClusterOptions& options,
                        const std::filesystem::path& model,
                        const std::filesystem::path& run_dir) {
  Words words = {"--model",
                 model.string(),
                 "--workers",
                 std::to_string(options.workers),
                 "--replicas",
                 std::to_string(options.replicas),
                 "--placement",
                 options.placement,
                 "--admin-host",
                 "127.0.0.1",
                 "--admin-port",
                 std::to_string(options.admin_port),
                 "--dtype",
                 options.dtype,
                 "--kernels",
                 options.kernels,
                 "--run-dir",
                 run_dir.string(),
                 "--worker-orphan-timeout-s",
                 orphan_timeout_s(options)};
  if (options.fabric == "mpi") add(words, {"--fleet", "static", "--fabric", "mpi"});
  if (options.capacity > 0) add(words, {"--capacity", std::to_string(options.capacity)});
  if (options.capacity_bytes > 0)
    add(words, {"--capacity-bytes", std::to_string(options.capacity_bytes)});
  if (options.router_expert_bytes > 0)
    add(words, {"--router-expert-bytes", std::to_string(options.router_expert_bytes)});
  if (options.move_headroom)
    add(words, {"--move-headroom", std::to_string(*options.move_headroom)});
  if (!options.expert_dtype.empty()) add(words, {"--expert-dtype", options.expert_dtype});
  if (!options.served_name.empty()) add(words, {"--served-model-name", options.served_name});
  if (options.worker_threads > 0)
    add(words, {"--threads-per-worker", std::to_string(options.worker_threads)});
  for (const std::string& deployment : options.deployments) add(words, {"--deploy", deployment});
  if (!options.full) words.emplace_back("--no-full");
  if (!options.restart_workers) words.emplace_back("--no-restart-workers");
  return words;
}

/// Says so if the deployments are not those of the flags.
void say_whether_it_goes_on(const std::string& admin_url, const std::filesystem::path& run_dir) {
  const auto status = AdminClient(admin_url).call("GET", "/v1/status", "", kCallTimeout);
  if (!status || !status->at("restored").as_bool() ||
      status->at("epoch").to_number<std::uint64_t>() == 0)
    return;
  std::cerr << "moiety: goes on with the deployments of the cluster that was in "
            << run_dir.string() << " before; --fresh begins anew" << std::endl;
}

void say_ended(const std::vector<OwnProcess>& processes) {
  for (const OwnProcess& each : processes) {
    std::cerr << "moiety: ended " << each.name << " (pid " << each.pid
              << ") of the cluster that was killed here" << std::endl;
  }
}

/// Names the flag that moves a port which is taken.
Error with_flag(Error error, const char* flag) {
  if (error.message.find("cannot listen on") != std::string::npos) {
    error.message += "; choose another with ";
    error.message += flag;
  }
  return error;
}

bool is_gone(pid_t pid) { return ::kill(pid, 0) != 0 && errno == ESRCH; }

}  // namespace

std::string orphan_timeout_s(const LocalClusterOptions& options) {
  return std::to_string(options.detach ? std::chrono::seconds(kDetachedOrphanTimeout).count()
                                       : kOrphanTimeout.count());
}

Words router_words(const LocalClusterOptions& options,
                   const std::filesystem::path& model,
                   const RunFile& info,
                   std::uint32_t router) {
  std::size_t threads = options.router_threads;
  if (threads == 0 && options.routers > 1) threads = share_of_cores(options.routers);
  Words words = {"--model",
                 model.string(),
                 "--coordinator",
                 info.control_address,
                 "--id",
                 std::to_string(router),
                 "--host",
                 options.host,
                 "--port",
                 std::to_string(router_port(options.port, options.admin_port, router)),
                 "--threads",
                 std::to_string(threads),
                 "--dtype",
                 options.dtype,
                 "--kernels",
                 options.kernels,
                 "--combine",
                 options.combine,
                 "--reply-timeout-ms",
                 std::to_string(options.reply_timeout_ms),
                 "--orphan-timeout",
                 orphan_timeout_s(options),
                 "--served-model-name",
                 info.model};
  if (!options.expert_dtype.empty()) add(words, {"--expert-dtype", options.expert_dtype});
  if (options.least_reply_timeout_ms)
    add(words, {"--least-reply-timeout-ms", std::to_string(*options.least_reply_timeout_ms)});
  if (options.hedge_after_ms)
    add(words, {"--hedge-after-ms", std::to_string(*options.hedge_after_ms)});
  if (!options.micro_batches.empty()) add(words, {"--micro-batches", options.micro_batches});
  if (!options.chat_template.empty())
    add(words, {"--chat-template", std::filesystem::absolute(options.chat_template).string()});
  if (!options.generation_config.empty())
    add(words, {"--generation-config", options.generation_config});
  return words;
}

Result<std::filesystem::path> bundled_model() {
  std::error_code ec;
  const std::filesystem::path bin =
      std::filesystem::read_symlink("/proc/self/exe", ec).parent_path();
  std::string tried;
  for (const char* relative :
       {"../../models/moiety-tiny-emo", "../share/moiety/models/moiety-tiny-emo"}) {
    const std::filesystem::path folder = (bin / relative).lexically_normal();
    if (std::filesystem::exists(folder / "config.json", ec)) return folder;
    tried += (tried.empty() ? "" : " or ") + folder.string();
  }
  return fail(ErrorCode::kNotFound,
              "the bundled checkpoint is not at " + tried + ": name one with --model DIR");
}

LocalCluster::~LocalCluster() { stop(); }

void LocalCluster::stop() {
  if (coordinator_.empty()) return;
  Supervised& coordinator = coordinator_.front();
  // A coordinator that died has left its workers behind: another one takes them over and ends them.
  const bool served = !admin_url_.empty();
  if (served && coordinator.pid() <= 0 && !coordinator.ended_well() && coordinator.start()) {
    const Deadline deadline = Clock::now() + kStopGrace;
    while (!coordinator.poll() && Clock::now() < deadline &&
           !AdminClient(admin_url_).call("GET", "/health", "", kCallTimeout)) {
      std::this_thread::sleep_for(kPoll);
    }
  }
  // The coordinator tells the routers to end, waits for them and for the workers. Asked over its
  // API and not by SIGTERM: it gets one if this process ends meanwhile (a second Ctrl-C), and at a
  // second SIGTERM it would leave its workers behind.
  if (coordinator.pid() > 0) {
    const bool asked =
        served && AdminClient(admin_url_).call("POST", "/v1/shutdown", "", kCallTimeout);
    if (!asked || !coordinator.wait(2 * kStopGrace)) coordinator.end(2 * kStopGrace);
  }
  for (Supervised& each : others_) each.end(kStopGrace);
  coordinator_.clear();
  others_.clear();
}

std::vector<pid_t> LocalCluster::child_pids() const {
  std::vector<pid_t> pids;
  for (const Supervised& each : coordinator_) pids.push_back(each.pid());
  for (const Supervised& each : others_) pids.push_back(each.pid());
  return pids;
}

Result<bool> LocalCluster::supervise(std::vector<std::string>& events) {
  const Clock::time_point now = Clock::now();
  MOIETY_TRY(coordinator_.front().supervise(now, events));
  const bool ending = coordinator_.front().ended_well();  // it has told the others to end
  bool all_ended = ending;
  for (std::size_t i = 0; i < others_.size(); ++i) {
    Supervised& each = others_[i];
    if (ending) {
      each.poll();
      all_ended = all_ended && each.pid() <= 0;
    } else {
      const pid_t before = each.pid();
      MOIETY_TRY(each.supervise(now, events));
      if (!world_) {
        router_pids_[i] = each.pid();
      } else if (each.pid() != before) {
        forget_world();
      }
    }
  }
  if (ending && !end_by_) end_by_ = now + kStopGrace;
  // One that it has not told, because it was about to connect, is ended with the rest.
  if (all_ended || (end_by_ && now > *end_by_)) return false;
  if (world_ && !ending) MOIETY_TRY(supervise_world(now, events));
  // On a full disk the cluster goes on as it is.
  const Result<void> noted = note_others();
  if (!noted && !note_failed_) events.push_back(noted.error().message);
  note_failed_ = !noted;
  return true;
}

Result<void> LocalCluster::note_others() {
  std::vector<pid_t> pids;
  for (const Supervised& each : others_) pids.push_back(each.pid());
  if (pids == noted_) return {};
  LeftBehind left;
  for (const Supervised& each : others_) {
    if (const auto start_time = process_start_time(each.pid()))
      left.processes.push_back({each.spec().name, each.pid(), *start_time});
  }
  if (segments_) left.segments = segments_->path();
  MOIETY_TRY(write_left_behind(run_dir_, left));
  noted_ = std::move(pids);
  return {};
}

Result<void> LocalCluster::supervise_world(Clock::time_point now,
                                           std::vector<std::string>& events) {
  if (others_.front().pid() <= 0 || (router_pids_.empty() && !find_routers())) return {};
  if (!router_pids_.empty() && std::all_of(router_pids_.begin(), router_pids_.end(), is_gone)) {
    // At the end of the cluster routers go first.
    const auto status = AdminClient(admin_url_).call("GET", "/v1/status", "", kCallTimeout);
    if (!status || status->at("shutting_down").as_bool()) return {};
    events.push_back("no router of the MPI world is left; starting it again");
  } else if (world_lacks_workers(now)) {
    events.push_back(
        "workers of the MPI world are gone, and those that are left cannot take all of their "
        "experts; starting it again");
  } else {
    return {};
  }
  others_.front().end(kStopGrace);
  forget_world();
  return others_.front().start();
}

bool LocalCluster::world_lacks_workers(Clock::time_point now) {
  if (!restart_workers_ || now < look_at_world_at_) return false;
  look_at_world_at_ = now + kLookAtWorld;
  const auto status = AdminClient(admin_url_).call("GET", "/v1/status", "", kCallTimeout);
  if (!status) {  // nobody who could have helped the world
    lacking_since_.reset();
    return false;
  }
  std::uint32_t connected = 0;
  bool moves = !status->at("operation").is_null() || status->at("queued_operations") != 0;
  for (const boost::json::value& worker : status->at("workers").as_array()) {
    connected += worker.at("lease_age_ms").is_null() ? 0 : 1;
    moves = moves || worker.at("state").as_string() == "loading";
  }
  world_was_whole_ = world_was_whole_ || connected >= num_workers_;
  if (moves || connected >= num_workers_ || status->at("experts_missing") == 0) {
    lacking_since_.reset();
    return false;
  }
  if (!lacking_since_) lacking_since_ = now;
  return now - *lacking_since_ >= (world_was_whole_ ? kWorldPatience : kStartTimeout);
}

void LocalCluster::forget_world() {
  former_pids_.insert(router_pids_.begin(), router_pids_.end());
  router_pids_.clear();
  lacking_since_.reset();
  world_was_whole_ = false;
  // Killed ranks leave them. Not while a world runs: its ranks open each other's.
  if (segments_ && others_.front().pid() <= 0) segments_->clear();
}

bool LocalCluster::find_routers() {
  const auto status = AdminClient(admin_url_).call("GET", "/v1/status", "", kCallTimeout);
  if (!status) return false;
  api_urls_.clear();
  router_pids_.clear();
  for (const boost::json::value& router : status->at("routers").as_array()) {
    const auto pid = static_cast<pid_t>(router.at("pid").as_int64());
    // The coordinator may not have read yet that one of the world before has ended.
    if (!router.at("connected").as_bool() || former_pids_.contains(pid) || is_gone(pid)) continue;
    api_urls_.push_back("http://" + std::string(router.at("http_address").as_string()));
    router_pids_.push_back(pid);
  }
  return true;
}

bool LocalCluster::routers_have_said_so() const {
  const auto status = AdminClient(admin_url_).call("GET", "/v1/status", "", kCallTimeout);
  if (!status) return false;
  const auto& routers = status->at("routers").as_array();
  return std::all_of(router_pids_.begin(), router_pids_.end(), [&](pid_t pid) {
    return std::any_of(routers.begin(), routers.end(), [pid](const boost::json::value& router) {
      return router.at("pid") == pid && router.at("epoch") != 0;
    });
  });
}

Result<void> LocalCluster::check_alive() {
  if (const auto status = coordinator_.front().poll()) {
    return *status == 0 ? fail(ErrorCode::kUnavailable, "the cluster was ended while it started")
                        : with_flag(coordinator_.front().failure(*status), "--admin-port");
  }
  for (Supervised& each : others_) {
    if (const auto status = each.poll()) {
      return *status == 0 ? fail(ErrorCode::kUnavailable, each.spec().name + " was ended")
                          : with_flag(each.failure(*status), "--port");
    }
  }
  return {};
}

Result<LocalCluster> LocalCluster::start(const LocalClusterOptions& options, bool progress) {
  Progress line(progress);
  LocalCluster cluster;
  if (auto launched = cluster.launch(options, line); !launched) {
    cluster.stop();
    // Nothing was ever served: the next one, with other flags perhaps, does not go on with that.
    // (If it cannot be removed, it does, and says so.)
    if (cluster.began_anew_) (void)forget_cluster(cluster.run_dir_);
    return launched.error();
  }
  return cluster;
}

Result<void> LocalCluster::launch_coordinator(const LocalClusterOptions& options) {
  MOIETY_ASSIGN(const std::filesystem::path program, sibling_program("moiety-coordinator"));
  Supervised::Spec spec;
  spec.name = "the coordinator";
  spec.program = program;
  spec.arguments = coordinator_words(options, model_, run_dir_);
  spec.log = run_dir_ / "coordinator.log";
  spec.lifetime = options.detach ? Lifetime::kDetached : Lifetime::kWithUs;
  spec.was_ready = [run_dir = run_dir_](pid_t pid) {  // it writes the file when it has started up
    const auto file = read_run_file(run_dir);
    return file && file->pid == pid;
  };
  coordinator_.emplace_back(std::move(spec));
  return coordinator_.front().start();
}

Result<void> LocalCluster::launch_routers(const LocalClusterOptions& options, const RunFile& info) {
  MOIETY_ASSIGN(const std::filesystem::path program, sibling_program("moiety-router"));
  for (std::uint32_t router = 0; router < options.routers; ++router) {
    Supervised::Spec spec;
    spec.name = options.routers == 1 ? "the router" : "router " + std::to_string(router);
    spec.program = program;
    spec.arguments = router_words(options, model_, info, router);
    spec.environment = {{"MOIETY_TOKEN", info.token}};
    spec.log =
        run_dir_ / (router == 0 ? "router.log" : "router-" + std::to_string(router) + ".log");
    spec.lifetime = options.detach ? Lifetime::kDetached : Lifetime::kWithUs;
    others_.emplace_back(std::move(spec));
    MOIETY_TRY(others_.back().start());
    MOIETY_TRY(note_others());
  }
  return {};
}

Result<void> LocalCluster::launch(const LocalClusterOptions& options, Progress& progress) {
  for (const char* program : {"moiety-coordinator", "moiety-router", "moiety-worker"})
    MOIETY_TRY(sibling_program(program));
  model_ = options.model;
  if (model_.empty()) {
    MOIETY_ASSIGN(model_, bundled_model());
  }
  MOIETY_ASSIGN(run_dir_, make_run_dir(options.run_dir, options.admin_port));
  MOIETY_ASSIGN(run_dir_lock_, take_run_dir(run_dir_));
  // A folder that somebody named is theirs to clear: what is deployed there stays deployed.
  if (options.fresh || (options.run_dir.empty() && !ended_in_disorder(run_dir_))) {
    MOIETY_ASSIGN(const std::vector<OwnProcess> ended, forget_cluster(run_dir_));
    say_ended(ended);
  }
  began_anew_ = !has_state(run_dir_);
  // Until it serves, so that a start that fails, and ends in order, is no reason to forget it.
  if (!began_anew_) MOIETY_TRY(mark_unfinished(run_dir_));

  const Deadline deadline = Clock::now() + kStartTimeout;
  const auto wait_for = [&](const std::string& what, const auto& condition) -> Result<void> {
    progress.update("waiting for " + what);
    while (!condition()) {
      MOIETY_TRY(check_alive());
      if (interrupted()) return interrupted_error();
      if (Clock::now() > deadline) {
        return fail(ErrorCode::kDeadlineExceeded, "still waiting for " + what + " after " +
                                                      std::to_string(kStartTimeout.count()) +
                                                      " s; logs are in " + run_dir_.string());
      }
      std::this_thread::sleep_for(kPoll);
    }
    return {};
  };

  MOIETY_TRY(launch_coordinator(options));
  std::optional<RunFile> info;
  MOIETY_TRY(wait_for("the coordinator", [&] {
    info = read_run_file(run_dir_);
    return info && info->pid == coordinator_pid();
  }));
  admin_url_ = "http://" + info->admin_address;
  progress.update("");  // so that the line is free
  say_whether_it_goes_on(admin_url_, run_dir_);
  say_ended(end_left_behind(run_dir_));
  // Started again, it is found where it was, knows the same secret, and takes its deployments from
  // its state: the files that the first ones came from may be gone.
  Supervised::Spec& again = coordinator_.front().spec();
  for (auto it = again.arguments.begin(); it != again.arguments.end();)
    it = *it == "--deploy" ? again.arguments.erase(it, it + 2) : it + 1;
  again.environment = {{"MOIETY_TOKEN", info->token}};
  add(again.arguments, {"--listen", info->control_address});
  *(std::find(again.arguments.begin(), again.arguments.end(), "--admin-port") + 1) =
      info->admin_address.substr(info->admin_address.rfind(':') + 1);

  world_ = options.fabric == "mpi";
  num_workers_ = options.workers;
  restart_workers_ = options.restart_workers;
  MOIETY_TRY(world_ ? launch_world(options, *info) : launch_routers(options, *info));
  MOIETY_TRY(wait_for(options.routers == 1 ? "the router" : "the routers",
                      [&] { return find_routers() && router_pids_.size() >= options.routers; }));
  // So are routers, at the ports that they got.
  auto url = api_urls_.begin();
  for (Supervised& each : others_) {
    Words& words = each.spec().arguments;
    for (std::size_t i = 0; i + 1 < words.size() && url != api_urls_.end(); ++i) {
      if (words[i] != "--port") continue;
      words[i + 1] = url->substr(url->rfind(':') + 1);
      ++url;
    }
  }
  MOIETY_TRY(wait_for("the workers to load their experts", [&] {
    return std::all_of(api_urls_.begin(), api_urls_.end(), [](const std::string& url) {
      const auto ready = http::request("GET", url + "/ready", "", kCallTimeout);
      return ready && ready->status == 200;
    });
  }));
  // What they told the coordinator may still be under way, and it would say that nobody serves.
  MOIETY_TRY(wait_for("the coordinator to hear of it", [&] { return routers_have_said_so(); }));
  return clear_unfinished(run_dir_);
}

}  // namespace moiety::cli
