#include "cli/supervised.h"

#include <sys/wait.h>

#include <algorithm>

namespace moiety::cli {

namespace {

constexpr std::chrono::milliseconds kFirstBackoff{200};
constexpr std::chrono::milliseconds kLastBackoff{5000};
constexpr std::chrono::milliseconds kLastBackoffOfReady{1000};

}  // namespace

Result<void> Supervised::start() {
  std::error_code missing;
  const std::uintmax_t size = std::filesystem::file_size(spec_.log, missing);
  log_begin_ = missing ? 0 : size;
  MOIETY_ASSIGN(pid_, start_process(spec_.program, spec_.arguments, spec_.environment, spec_.log,
                                    spec_.lifetime));
  started_ = Clock::now();
  restart_at_.reset();
  return {};
}

std::optional<int> Supervised::poll() {
  if (pid_ <= 0) return std::nullopt;
  const auto status = poll_process(pid_);
  if (!status) return std::nullopt;
  pid_ = -1;
  ended_well_ = *status == 0;
  return status;
}

Result<void> Supervised::supervise(Clock::time_point now, std::vector<std::string>& events) {
  const pid_t pid = pid_;
  if (const auto status = poll(); status && !ended_well_) {
    const bool healthy = now - started_ >= kHealthyAfter;
    const bool got_ready = spec_.was_ready && spec_.was_ready(pid);
    if (healthy || got_ready) deaths_ = 0;
    if (healthy) backoff_ = {};
    if (++deaths_ >= kMaxDeaths) {
      Error error = failure(*status);
      error.message += "; it ended " + std::to_string(deaths_) + " times in a row";
      return error;
    }
    const auto last = got_ready ? kLastBackoffOfReady : kLastBackoff;
    backoff_ = backoff_.count() == 0 ? kFirstBackoff : std::min(2 * backoff_, last);
    restart_at_ = now + backoff_;
    events.push_back(failure(*status).message + "; starting it again in " +
                     std::to_string(backoff_.count()) + " ms");
  }
  if (restart_at_ && now >= *restart_at_) {
    MOIETY_TRY(start());
    events.push_back(spec_.name + " runs again (pid " + std::to_string(pid_) + ")");
  }
  return {};
}

Error Supervised::failure(int status) const {
  const std::string file = spec_.log.string();
  const std::string last = tail(spec_.log, 5, log_begin_);
  const std::string said = spec_.program.filename().string() + ": ";  // before its last error
  const std::size_t line = last.rfind('\n') + 1;                      // 0 if there is one line only
  if (WIFEXITED(status) && last.compare(line, said.size(), said) == 0) {
    return fail(ErrorCode::kUnavailable, spec_.name + " ended: " + last.substr(line + said.size()) +
                                             " (its log: " + file + ")");
  }
  if (WIFSIGNALED(status)) {
    return fail(ErrorCode::kUnavailable,
                spec_.name + " ended with " + describe_status(status) + " (its log: " + file + ")");
  }
  return fail(ErrorCode::kUnavailable,
              spec_.name + " ended with " + describe_status(status) + "; " +
                  (last.empty() ? file + " says nothing" : "the end of " + file + ":\n" + last));
}

void Supervised::end(std::chrono::milliseconds grace) {
  restart_at_.reset();
  if (pid_ > 0) end_process(pid_, grace);
  pid_ = -1;
}

bool Supervised::wait(std::chrono::milliseconds grace) {
  restart_at_.reset();
  if (pid_ <= 0) return true;
  if (!wait_process(pid_, grace)) return false;
  pid_ = -1;
  return true;
}

}  // namespace moiety::cli
