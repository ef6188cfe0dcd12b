#include "cli/left_behind.h"

#include <poll.h>
#include <signal.h>

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <utility>

#include "cli/command.h"
#include "common/file.h"
#include "common/ids.h"
#include "common/process_start.h"

// glibc 2.36 declares these without extern "C".
extern "C" {
#include <sys/pidfd.h>
}

namespace moiety::cli {
namespace json = boost::json;
namespace {

constexpr std::chrono::seconds kGrace{15};
constexpr std::chrono::seconds kKilledGrace{5};
constexpr int kLook = 50;  // ms: whether there was a Ctrl-C

std::filesystem::path file_of(const std::filesystem::path& run_dir) {
  return run_dir / "processes.json";
}

struct Running {
  OwnProcess process;
  Fd handle;  // a pidfd: a signal never reaches another process that got the number
};

std::vector<Running> still_running(const std::vector<OwnProcess>& processes) {
  std::vector<Running> running;
  for (const OwnProcess& each : processes) {
    if (each.pid <= 1) continue;
    Fd handle(::pidfd_open(each.pid, 0));
    // In this order: what the descriptor names cannot change any more.
    if (!handle || process_start_time(each.pid) != each.start_time) continue;
    pollfd ended{handle.get(), POLLIN, 0};  // and nobody has waited for it yet
    if (::poll(&ended, 1, 0) == 0) running.push_back({each, std::move(handle)});
  }
  return running;
}

void signal_all(const std::vector<Running>& running, int number) {
  for (const Running& each : running) ::pidfd_send_signal(each.handle.get(), number, nullptr, 0);
}

/// Whether all have ended within the grace. Ctrl-C ends it.
bool wait_for_all(const std::vector<Running>& running, std::chrono::milliseconds grace) {
  const Deadline deadline = Clock::now() + grace;
  return std::all_of(running.begin(), running.end(), [&](const Running& each) {
    pollfd gone{each.handle.get(), POLLIN, 0};
    while (::poll(&gone, 1, kLook) != 1) {
      if (interrupted() || Clock::now() >= deadline) return false;
    }
    return true;
  });
}

}  // namespace

Result<void> write_left_behind(const std::filesystem::path& run_dir, const LeftBehind& left) {
  json::array processes;
  for (const OwnProcess& each : left.processes)
    processes.push_back({{"name", each.name}, {"pid", each.pid}, {"start_time", each.start_time}});
  return write_file(file_of(run_dir),
                    json::serialize(json::object{{"boot_id", boot_id()},
                                                 {"processes", std::move(processes)},
                                                 {"segments", left.segments.string()}}) +
                        "\n");
}

namespace {

LeftBehind read_left_behind(const std::filesystem::path& run_dir) {
  LeftBehind left;
  const auto text = read_file(file_of(run_dir), 1 << 20);
  if (!text) return left;
  try {
    const json::value all = json::parse(*text);
    if (std::string_view(all.at("boot_id").as_string()) != boot_id()) return left;
    for (const json::value& each : all.at("processes").as_array()) {
      left.processes.push_back({std::string(each.at("name").as_string()),
                                each.at("pid").to_number<pid_t>(),
                                each.at("start_time").to_number<std::uint64_t>()});
    }
    left.segments = std::string(all.at("segments").as_string());
  } catch (const std::exception&) {  // cut short by a loss of power, or not ours
  }
  return left;
}

}  // namespace

std::vector<OwnProcess> end_left_behind(const std::filesystem::path& run_dir) {
  const LeftBehind left = read_left_behind(run_dir);
  std::vector<OwnProcess> ended = end_processes(left.processes);
  // Whatever else the file may say, nothing but a folder that was made for segments.
  std::error_code ignored;
  if (left.segments.string().starts_with(kSegments) &&
      left.segments.parent_path() == std::filesystem::path(kSegments).parent_path())
    std::filesystem::remove_all(left.segments, ignored);
  return ended;
}

std::vector<OwnProcess> end_processes(const std::vector<OwnProcess>& processes) {
  const std::vector<Running> running = still_running(processes);
  signal_all(running, SIGTERM);
  if (!wait_for_all(running, kGrace)) {
    signal_all(running, SIGKILL);
    (void)wait_for_all(running, kKilledGrace);
  }
  std::vector<OwnProcess> ended;
  for (const Running& each : running) ended.push_back(each.process);
  return ended;
}

}  // namespace moiety::cli
