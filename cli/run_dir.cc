#include "cli/run_dir.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "cli/command.h"
#include "common/ids.h"
#include "coordinator/store.h"

namespace moiety::cli {
namespace json = boost::json;
namespace {

Error cannot_make(const std::filesystem::path& path, int error) {
  return fail(ErrorCode::kIo, path.string() + ": cannot make this folder: " + std::strerror(error));
}

Result<void> check_private(const std::filesystem::path& path) {
  struct stat found {};
  if (::lstat(path.c_str(), &found) != 0) return cannot_make(path, errno);
  const char* wrong = !S_ISDIR(found.st_mode)      ? "is not a folder"
                      : found.st_uid != ::getuid() ? "belongs to another user"
                      : (found.st_mode & 022) != 0 ? "can be written by other users"
                                                   : nullptr;
  if (wrong == nullptr) return {};
  return fail(ErrorCode::kFailedPrecondition,
              path.string() + ": " + wrong +
                  ", and a cluster's secret must not lie there; remove it, or name another folder "
                  "with --run-dir");
}

/// Whether `pid` is a coordinator, and not another program that got the number since.
bool is_coordinator(pid_t pid) {
  if (pid <= 1 || (::kill(pid, 0) != 0 && errno != EPERM)) return false;
  std::error_code unreadable;  // another user's process: believe the file
  const auto program =
      std::filesystem::read_symlink("/proc/" + std::to_string(pid) + "/exe", unreadable);
  if (unreadable) return unreadable == std::errc::permission_denied;  // else it ended, unreaped
  return program.filename().string().starts_with("moiety-coordinator");
}

constexpr std::chrono::seconds kTakeTimeout{60};
constexpr std::chrono::milliseconds kTakeAgain{20};

}  // namespace

Result<std::filesystem::path> make_run_dir(const std::filesystem::path& given,
                                           std::uint16_t admin_port) {
  std::filesystem::path path = given;
  if (path.empty()) {
    path = std::filesystem::temp_directory_path() /
           ("moiety-" + std::to_string(::getuid()) + "-" +
            (admin_port != 0 ? std::to_string(admin_port) : "p" + std::to_string(::getpid())));
  } else if (path.has_parent_path()) {
    std::error_code error;
    std::filesystem::create_directories(path.parent_path(), error);
    if (error) return cannot_make(path.parent_path(), error.value());
  }
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return cannot_make(path, errno);
  if (given.empty()) MOIETY_TRY(check_private(path));
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) return cannot_make(path, ENOTDIR);
  return path;
}

std::optional<RunFile> read_run_file(const std::filesystem::path& run_dir) {
  const auto content = read_file(run_dir / "coordinator.json", 1 << 16);
  if (!content) return std::nullopt;
  boost::system::error_code error;
  const json::value parsed = json::parse(*content, error);
  if (error || !parsed.is_object()) return std::nullopt;
  const auto text = [&](const char* name) {
    const json::value* value = parsed.as_object().if_contains(name);
    return value != nullptr && value->is_string() ? std::string(value->as_string()) : "";
  };
  const json::value* pid = parsed.as_object().if_contains("pid");
  RunFile file{pid != nullptr && pid->is_int64() ? static_cast<pid_t>(pid->as_int64()) : 0,
               text("model"), text("control_address"), text("admin_address"), text("token")};
  if (file.pid <= 0 || file.control_address.empty() || file.admin_address.empty())
    return std::nullopt;
  return file;
}

namespace {

/// kFailedPrecondition if a coordinator runs in this folder.
Result<void> check_no_coordinator(const std::filesystem::path& run_dir) {
  const auto file = read_run_file(run_dir);
  if (!file || !is_coordinator(file->pid)) return {};
  return fail(ErrorCode::kFailedPrecondition,
              run_dir.string() + ": a cluster runs here (coordinator pid " +
                  std::to_string(file->pid) + "); `moiety down --admin http://" +
                  file->admin_address +
                  "` ends it; another one needs an --admin-port, a --port and a --run-dir of its "
                  "own");
}

}  // namespace

Result<Fd> take_run_dir(const std::filesystem::path& run_dir) {
  const std::filesystem::path path = run_dir / "up.lock";
  Fd lock(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock) return fail(ErrorCode::kIo, path.string() + ": cannot open: " + std::strerror(errno));
  const Deadline deadline = Clock::now() + kTakeTimeout;
  while (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR)
      return fail(ErrorCode::kIo, path.string() + ": cannot lock: " + std::strerror(errno));
    MOIETY_TRY(check_no_coordinator(run_dir));  // else it starts, ends, or starts one again
    if (interrupted()) return interrupted_error();
    if (Clock::now() > deadline) {
      return fail(ErrorCode::kFailedPrecondition,
                  run_dir.string() +
                      ": another `moiety up` is starting or ending a cluster here; wait for it, or "
                      "give another --admin-port, --port and --run-dir");
    }
    std::this_thread::sleep_for(kTakeAgain);
  }
  MOIETY_TRY(check_no_coordinator(run_dir));  // one whose `up` was killed
  return lock;
}

bool has_state(const std::filesystem::path& run_dir) {
  std::error_code unreadable;
  return std::filesystem::exists(run_dir / "state.sqlite", unreadable) || unreadable;
}

namespace {

std::filesystem::path unfinished_mark(const std::filesystem::path& run_dir) {
  return run_dir / "start-unfinished";
}

}  // namespace

bool ended_in_disorder(const std::filesystem::path& run_dir) {
  // A coordinator that ends in order takes its coordinator.json away.
  std::error_code unreadable;
  for (const auto& path : {run_dir / "coordinator.json", unfinished_mark(run_dir)}) {
    if (std::filesystem::exists(path, unreadable) || unreadable) return true;
  }
  return false;
}

Result<void> mark_unfinished(const std::filesystem::path& run_dir) {
  return write_file(unfinished_mark(run_dir), "");
}

Result<void> clear_unfinished(const std::filesystem::path& run_dir) {
  std::error_code ec;
  std::filesystem::remove(unfinished_mark(run_dir), ec);
  if (!ec) return {};
  return fail(ErrorCode::kIo,
              unfinished_mark(run_dir).string() + ": cannot remove: " + ec.message());
}

namespace {

/// Of its state file; none if that cannot be read.
std::vector<OwnProcess> workers_left_behind(const std::filesystem::path& run_dir) {
  std::vector<OwnProcess> processes;
  if (!has_state(run_dir)) return processes;
  const auto workers = coordinator::Store::workers_left_in(run_dir / "state.sqlite");
  if (!workers) return processes;
  for (const coordinator::DurableWorker& each : *workers) {
    processes.push_back({"worker " + std::to_string(each.id.value),
                         static_cast<pid_t>(each.process.pid), each.process.start_time});
  }
  return processes;
}

}  // namespace

Result<std::vector<OwnProcess>> forget_cluster(const std::filesystem::path& run_dir) {
  const std::filesystem::path path = run_dir / "state.sqlite.lock";
  const Fd lock(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock) return fail(ErrorCode::kIo, path.string() + ": cannot open: " + std::strerror(errno));
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    return fail(ErrorCode::kFailedPrecondition,
                run_dir.string() + ": a coordinator uses the state here; nothing was deleted");
  }
  // Routers first: their requests need the workers.
  std::vector<OwnProcess> ended = end_left_behind(run_dir);
  const std::vector<OwnProcess> workers = end_processes(workers_left_behind(run_dir));
  ended.insert(ended.end(), workers.begin(), workers.end());
  std::error_code ec;
  for (const char* name :
       {"state.sqlite", "state.sqlite-wal", "state.sqlite-shm", "state.sqlite-journal"}) {
    std::filesystem::remove(run_dir / name, ec);
    if (ec) {
      return fail(ErrorCode::kIo, (run_dir / name).string() + ": cannot remove: " + ec.message());
    }
  }
  return ended;
}

Result<ScratchDir> ScratchDir::make(const std::string& prefix) {
  std::string path = (std::filesystem::temp_directory_path() / (prefix + "-XXXXXX")).string();
  if (::mkdtemp(path.data()) == nullptr) return cannot_make(path, errno);
  return ScratchDir(path);
}

void ScratchDir::clear() {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(path_, ignored))
    std::filesystem::remove(entry.path(), ignored);
}

ScratchDir::~ScratchDir() {
  std::error_code ignored;
  if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

}  // namespace moiety::cli
