#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/process.h"
#include "common/ids.h"
#include "common/result.h"

namespace moiety::cli {

/// A child process that is started again when it dies, with a back-off of 0.2 s that doubles up to
/// 5 s, or to 1 s where it had got ready. It gives up when the process died kMaxDeaths times in a
/// row, each time after less than kHealthyAfter and before it was ready. Not thread-safe; the
/// destructor leaves the process alone.
class Supervised {
 public:
  static constexpr int kMaxDeaths = 6;
  static constexpr std::chrono::seconds kHealthyAfter{10};

  struct Spec {
    std::string name;  ///< for people: "the coordinator"
    std::filesystem::path program;
    std::vector<std::string> arguments;
    std::vector<std::pair<std::string, std::string>> environment;
    std::filesystem::path log;
    Lifetime lifetime = Lifetime::kWithUs;
    /// Whether the process with this pid, which has died, had been ready; may be left out.
    std::function<bool(pid_t)> was_ready;
  };

  explicit Supervised(Spec spec) : spec_(std::move(spec)) {}

  /// What it is started with from now on.
  Spec& spec() { return spec_; }
  const Spec& spec() const { return spec_; }
  pid_t pid() const { return pid_; }  ///< -1 while none runs

  Result<void> start();
  /// Looks whether it has ended. A death is noted in `events` (sentences for people), and answered
  /// by another start when its back-off is over. An error: it gave up, or cannot be started.
  Result<void> supervise(Clock::time_point now, std::vector<std::string>& events);
  /// Whether it ended by itself with status 0: nobody starts it again.
  bool ended_well() const { return ended_well_; }
  /// Whether it has died; without supervise() it stays so.
  std::optional<int> poll();
  /// What its log says of the end with this wait status.
  Error failure(int status) const;
  /// Asks it to end (SIGTERM), kills it after the grace. Nothing if none runs.
  void end(std::chrono::milliseconds grace);
  /// Waits for its own end; whether that came within the grace.
  bool wait(std::chrono::milliseconds grace);

 private:
  Spec spec_;
  pid_t pid_ = -1;
  bool ended_well_ = false;
  std::uintmax_t log_begin_ = 0;  // bytes of earlier runs in its log
  Clock::time_point started_;
  std::optional<Clock::time_point> restart_at_;
  std::chrono::milliseconds backoff_{0};
  int deaths_ = 0;
};

}  // namespace moiety::cli
