#include "common/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "common/utf8.h"

namespace moiety {
namespace {

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

}  // namespace

void init_logging(std::string_view process_name, LogLevel default_level) {
  auto logger = std::make_shared<spdlog::logger>(std::string(process_name),
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %l [%n] %v");
  const char* level = std::getenv("MOIETY_LOG");
  logger->set_level(to_spdlog(default_level));
  for (LogLevel each : {LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarning, LogLevel::kError}) {
    if (level != nullptr && spdlog::level::from_str(level) == to_spdlog(each)) {
      logger->set_level(to_spdlog(each));
    }
  }
  logger->flush_on(spdlog::level::debug);
  spdlog::set_default_logger(std::move(logger));
}

void log_line(LogLevel level, std::string_view text) {
  spdlog::log(to_spdlog(level), printable(text));
}

void print_error(std::string_view program, std::string_view message) {
  const std::string line = fmt::format("{}: {}\n", program, printable(message));
  std::fputs(line.c_str(), stderr);
}

}  // namespace moiety
