#pragma once

#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/result.h"

namespace moiety::cli {

/// Starts a program in a session of its own (a terminal's Ctrl-C does not reach it), stdout and
/// stderr appended to `log`, stdin empty. `environment` is added to ours. kIo when it cannot be
/// started; a program that cannot be executed ends with status 127.
Result<pid_t> start_process(const std::filesystem::path& program,
                            const std::vector<std::string>& arguments,
                            const std::vector<std::pair<std::string, std::string>>& environment,
                            const std::filesystem::path& log);

/// Whether a child of ours has ended (and reaps it); its wait status then.
std::optional<int> poll_process(pid_t pid);

/// SIGTERM, up to `grace` of waiting, then SIGKILL. Reaps it. Does nothing when it has ended
/// already.
void end_process(pid_t pid, std::chrono::milliseconds grace);

/// "exit status 1" or "signal 9"
std::string describe_status(int status);

/// A program that lies beside this one.
Result<std::filesystem::path> sibling_program(const std::string& name);

/// The last lines of a file, for error messages.
std::string tail(const std::filesystem::path& file, std::size_t lines);

}  // namespace moiety::cli
