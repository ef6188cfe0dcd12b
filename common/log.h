#pragma once

#include <fmt/core.h>

#include <string_view>

namespace moiety {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

/// Names this process in every line ("router 0", "worker 3"). Call early. The level comes from the
/// environment variable MOIETY_LOG (debug, info, warning, error), `level` unless set. Lines go to
/// stderr, one write each; safe from any thread.
void init_logging(std::string_view process_name, LogLevel level = LogLevel::kInfo);

/// One line to stderr, "PROGRAM: MESSAGE", for what people at a terminal read. Here and in log_line
/// control characters are made visible (printable()): text may come from files and clients.
void print_error(std::string_view program, std::string_view message);

void log_line(LogLevel level, std::string_view text);

template <class... Args>
void log_debug(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::kDebug, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::kInfo, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::kWarning, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_error(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::kError, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace moiety
