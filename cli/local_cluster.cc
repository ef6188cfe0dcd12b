#include "cli/local_cluster.h"

#include <unistd.h>

#include <thread>

#include "cli/admin_client.h"
#include "cli/command.h"
#include "cli/process.h"
#include "common/file.h"
#include "common/ids.h"
#include "http/client.h"

namespace moiety::cli {
namespace json = boost::json;
namespace {

constexpr std::chrono::seconds kStartTimeout{120};
constexpr std::chrono::milliseconds kPoll{20};
constexpr std::chrono::seconds kStopGrace{15};

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
      run_dir_(std::move(other.run_dir_)) {}

LocalCluster::~LocalCluster() { stop(); }

void LocalCluster::release() { coordinator_ = router_ = -1; }

void LocalCluster::stop() {
  // The coordinator tells the router to end, waits for it and for the workers.
  if (coordinator_ > 0) end_process(coordinator_, 2 * kStopGrace);
  if (router_ > 0) end_process(router_, kStopGrace);
  release();
}

Error LocalCluster::failure(const std::string& process, int status) const {
  std::error_code ec;
  const std::filesystem::path log = run_dir_ / (process + ".log");
  return fail(ErrorCode::kUnavailable, "the " + process + " ended with " + describe_status(status) +
                                           "; the end of " + log.string() + ":\n" + tail(log, 5));
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
  MOIETY_ASSIGN(const std::filesystem::path coordinator, sibling_program("moiety-coordinator"));
  MOIETY_ASSIGN(const std::filesystem::path router, sibling_program("moiety-router"));
  std::filesystem::path model = options.model;
  if (model.empty()) {
    MOIETY_ASSIGN(model, bundled_model());
  }
  run_dir_ = options.run_dir.empty()
                 ? std::filesystem::temp_directory_path() /
                       ("moiety-" + std::to_string(::getuid()) + "-" +
                        (options.admin_port != 0 ? std::to_string(options.admin_port)
                                                 : "p" + std::to_string(::getpid())))
                 : options.run_dir;
  std::error_code ec;
  std::filesystem::create_directories(run_dir_, ec);
  if (ec)
    return fail(ErrorCode::kIo, run_dir_.string() + ": cannot make this folder: " + ec.message());
  for (const char* log : {"coordinator.log", "router.log"})
    std::filesystem::remove(run_dir_ / log, ec);

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

  MOIETY_ASSIGN(coordinator_,
                start_process(coordinator, arguments, {}, run_dir_ / "coordinator.log"));
  json::value info;
  MOIETY_TRY(wait_for("the coordinator", [&] {
    const auto text = read_file(run_dir_ / "coordinator.json");
    boost::system::error_code parse_error;
    if (text) info = json::parse(*text, parse_error);
    return text && !parse_error && info.at("pid").to_number<pid_t>() == coordinator_;
  }));
  const auto field = [&](const char* name) { return std::string(info.at(name).as_string()); };
  admin_url_ = "http://" + field("admin_address");

  arguments = {"--model",
               model.string(),
               "--coordinator",
               field("control_address"),
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
  arguments.insert(arguments.end(), {"--served-model-name", field("model")});
  MOIETY_ASSIGN(router_, start_process(router, arguments, {{"MOIETY_TOKEN", field("token")}},
                                       run_dir_ / "router.log"));
  const AdminClient admin(admin_url_);
  MOIETY_TRY(wait_for("the router", [&] {
    const auto status = admin.call("GET", "/v1/status");
    if (!status || status->at("routers").as_array().empty()) return false;
    api_url_ = "http://" + std::string(status->at("routers").at(0).at("http_address").as_string());
    return true;
  }));
  return wait_for("the workers to load their experts", [&] {
    const auto ready = http::request("GET", api_url_ + "/ready", "", std::chrono::seconds(2));
    return ready && ready->status == 200;
  });
}

}  // namespace moiety::cli
