#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/result.h"

namespace moiety::cli {

/// Whether a child outlives us. kWithUs: the kernel sends it SIGTERM when the thread that started
/// it ends, however that happens (SIGKILL too), so start it from the main thread.
enum class Lifetime { kWithUs, kDetached };

/// Starts a program in a session of its own (a terminal's Ctrl-C does not reach it), stdout and
/// stderr appended to `log`, stdin empty. `environment` is added to ours, in place of what has the
/// same name. kIo when it cannot be started; a program that cannot be executed ends with status
/// 127.
Result<pid_t> start_process(const std::filesystem::path& program,
                            const std::vector<std::string>& arguments,
                            const std::vector<std::pair<std::string, std::string>>& environment,
                            const std::filesystem::path& log,
                            Lifetime lifetime);

/// Whether a child of ours has ended (and reaps it); its wait status then.
std::optional<int> poll_process(pid_t pid);

/// Waits up to `grace` for a child to end, and reaps it; whether it did.
bool wait_process(pid_t pid, std::chrono::milliseconds grace);

/// SIGTERM, up to `grace` of waiting, then SIGKILL. Reaps it. Does nothing when it has ended
/// already.
void end_process(pid_t pid, std::chrono::milliseconds grace);

/// While it lives, this process inherits the processes that its children leave behind (workers of a
/// coordinator that was killed); its end ends those that are still there. One at a time, made
/// before the children and destroyed after them.
class Inheritance {
 public:
  Inheritance();
  ~Inheritance();
  Inheritance(const Inheritance&) = delete;
  Inheritance& operator=(const Inheritance&) = delete;
  /// Reaps one that ended. `own` are the children that others wait for.
  static void reap(const std::vector<pid_t>& own);
};

/// "exit status 1" or "signal 9"
std::string describe_status(int status);

/// A program that lies beside this one.
Result<std::filesystem::path> sibling_program(const std::string& name);

/// The last lines of a file from byte `first` on, without the last newline; for error messages.
std::string tail(const std::filesystem::path& file, std::size_t lines, std::uintmax_t first = 0);

}  // namespace moiety::cli
