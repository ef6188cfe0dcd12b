#include "cli/local_cluster.h"

#include <thread>

#include "cli/admin_client.h"
#include "cli/command.h"
#include "cli/process.h"
#include "cli/run_dir.h"
#include "common/ids.h"
#include "http/client.h"

namespace moiety::cli {
namespace {

constexpr std::chrono::seconds kStartTimeout{120};
constexpr std::chrono::milliseconds kPoll{20};
constexpr std::chrono::seconds kStopGrace{15};
constexpr std::chrono::seconds kCallTimeout{2};

}  // namespace

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

LocalCluster::LocalCluster(LocalCluster&& other) noexcept
    : coordinator_(std::exchange(other.coordinator_, -1)),
      router_(std::exchange(other.router_, -1)),
      api_url_(std::move(other.api_url_)),
      admin_url_(std::move(other.admin_url_)),
      run_dir_(std::move(other.run_dir_)),
      log_begin_(std::move(other.log_begin_)) {}

LocalCluster::~LocalCluster() { stop(); }

void LocalCluster::release() { coordinator_ = router_ = -1; }

void LocalCluster::stop() {
  // The coordinator tells the router to end, waits for it and for the workers. Asked over its API
  // and not by SIGTERM: it gets one if this process ends meanwhile (a second Ctrl-C), and at a
  // second SIGTERM it would leave its workers behind.
  if (coordinator_ > 0) {
    const bool asked = !admin_url_.empty() &&
                       AdminClient(admin_url_).call("POST", "/v1/shutdown", "", kCallTimeout);
    if (!asked || !wait_process(coordinator_, 2 * kStopGrace))
      end_process(coordinator_, 2 * kStopGrace);
  }
  if (router_ > 0) end_process(router_, kStopGrace);
  release();
}

Error LocalCluster::failure(const std::string& process, int status) const {
  const std::string file = log(process).string();
  const std::string last = tail(log(process), 5, log_begin_.at(process));
  const std::string said = "moiety-" + process + ": ";  // in front of the error that ended it
  const std::size_t line = last.rfind('\n') + 1;        // 0 if there is one line only
  if (last.compare(line, said.size(), said) == 0) {
    std::string message = last.substr(line + said.size());
    if (message.find("cannot listen on") != std::string::npos)
      message += process == "router" ? " with --port" : " with --admin-port";
    return fail(ErrorCode::kUnavailable,
                "the " + process + " ended: " + message + " (its log: " + file + ")");
  }
  return fail(ErrorCode::kUnavailable,
              "the " + process + " ended with " + describe_status(status) + "; " +
                  (last.empty() ? file + " says nothing" : "the end of " + file + ":\n" + last));
}

std::filesystem::path LocalCluster::log(const std::string& process) const {
  return run_dir_ / (process + ".log");
}

Result<pid_t> LocalCluster::start_logged(
    const std::string& process,
    const std::vector<std::string>& arguments,
    const std::vector<std::pair<std::string, std::string>>& environment,
    Lifetime lifetime) {
  MOIETY_ASSIGN(const std::filesystem::path program, sibling_program("moiety-" + process));
  std::error_code missing;
  const std::uintmax_t size = std::filesystem::file_size(log(process), missing);
  log_begin_[process] = missing ? 0 : size;
  return start_process(program, arguments, environment, log(process), lifetime);
}

std::optional<std::optional<Error>> LocalCluster::ended() {
  const std::pair<pid_t*, const char*> processes[] = {{&coordinator_, "coordinator"},
                                                      {&router_, "router"}};
  for (const auto& [pid, name] : processes) {
    if (*pid <= 0) continue;
    const auto status = poll_process(*pid);
    if (!status) continue;
    *pid = -1;
    if (*status != 0) return std::optional(failure(name, *status));
  }
  if (coordinator_ <= 0 && router_ <= 0) return std::optional<Error>();
  return std::nullopt;
}

Result<LocalCluster> LocalCluster::start(const LocalClusterOptions& options, bool progress) {
  LocalCluster cluster;
  MOIETY_TRY(cluster.launch(options, progress));
  return cluster;
}

Result<void> LocalCluster::launch(const LocalClusterOptions& options, bool progress) {
  for (const char* program : {"moiety-coordinator", "moiety-router"})
    MOIETY_TRY(sibling_program(program));
  std::filesystem::path model = options.model;
  if (model.empty()) {
    MOIETY_ASSIGN(model, bundled_model());
  }
  MOIETY_ASSIGN(run_dir_, make_run_dir(options.run_dir, options.admin_port));
  MOIETY_TRY(check_run_dir_is_free(run_dir_));
  const Lifetime lifetime = options.detach ? Lifetime::kDetached : Lifetime::kWithUs;

  std::vector<std::string> arguments = {"--model",      model.string(),
                                        "--workers",    std::to_string(options.workers),
                                        "--placement",  options.placement,
                                        "--admin-host", "127.0.0.1",
                                        "--admin-port", std::to_string(options.admin_port),
                                        "--dtype",      options.dtype,
                                        "--kernels",    options.kernels,
                                        "--run-dir",    run_dir_.string()};
  if (options.capacity > 0)
    arguments.insert(arguments.end(), {"--capacity", std::to_string(options.capacity)});
  if (!options.expert_dtype.empty())
    arguments.insert(arguments.end(), {"--expert-dtype", options.expert_dtype});
  if (!options.served_name.empty())
    arguments.insert(arguments.end(), {"--served-model-name", options.served_name});
  if (options.worker_threads > 0) {
    arguments.insert(arguments.end(),
                     {"--threads-per-worker", std::to_string(options.worker_threads)});
  }
  for (const std::string& deployment : options.deployments)
    arguments.insert(arguments.end(), {"--deploy", deployment});
  if (!options.full) arguments.emplace_back("--no-full");
  if (!options.restart_workers) arguments.emplace_back("--no-restart-workers");

  Progress line(progress);
  const Deadline deadline = Clock::now() + kStartTimeout;
  const auto wait_for = [&](const std::string& what, const auto& condition) -> Result<void> {
    line.update("waiting for " + what);
    for (;;) {
      if (condition()) return {};
      if (auto done = ended()) {
        return *done ? **done : fail(ErrorCode::kUnavailable, "the cluster ended while it started");
      }
      if (interrupted()) return interrupted_error();
      if (Clock::now() > deadline) {
        return fail(ErrorCode::kDeadlineExceeded, "still waiting for " + what + " after " +
                                                      std::to_string(kStartTimeout.count()) +
                                                      " s; logs are in " + run_dir_.string());
      }
      std::this_thread::sleep_for(kPoll);
    }
  };

  MOIETY_ASSIGN(coordinator_, start_logged("coordinator", arguments, {}, lifetime));
  std::optional<RunFile> info;
  MOIETY_TRY(wait_for("the coordinator", [&] {
    info = read_run_file(run_dir_);
    return info && info->pid == coordinator_;
  }));
  admin_url_ = "http://" + info->admin_address;

  arguments = {"--model",
               model.string(),
               "--coordinator",
               info->control_address,
               "--host",
               options.host,
               "--port",
               std::to_string(options.port),
               "--threads",
               std::to_string(options.router_threads),
               "--dtype",
               options.dtype,
               "--kernels",
               options.kernels,
               "--combine",
               options.combine,
               "--reply-timeout-ms",
               std::to_string(options.reply_timeout_ms)};
  arguments.insert(arguments.end(), {"--served-model-name", info->model});
  MOIETY_ASSIGN(router_,
                start_logged("router", arguments, {{"MOIETY_TOKEN", info->token}}, lifetime));
  const AdminClient admin(admin_url_);
  MOIETY_TRY(wait_for("the router", [&] {
    const auto status = admin.call("GET", "/v1/status", "", kCallTimeout);
    if (!status || status->at("routers").as_array().empty()) return false;
    api_url_ = "http://" + std::string(status->at("routers").at(0).at("http_address").as_string());
    return true;
  }));
  return wait_for("the workers to load their experts", [&] {
    const auto ready = http::request("GET", api_url_ + "/ready", "", kCallTimeout);
    return ready && ready->status == 200;
  });
}

}  // namespace moiety::cli
