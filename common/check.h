#pragma once

#include <string>
#include <string_view>

namespace moiety {

/// Logs what broke and where to stderr and aborts. Used through MOIETY_CHECK.
[[noreturn]] void check_failed(std::string_view what, const char* file, int line);

}  // namespace moiety

/// An invariant of our own code: a false `condition` is a bug. Stays in release builds.
/// `message` is anything that converts to std::string_view; it is evaluated only on failure.
#define MOIETY_CHECK(condition, message)                                                      \
  do {                                                                                        \
    if (!(condition)) [[unlikely]]                                                            \
      ::moiety::check_failed(std::string(#condition " is false: ").append(message), __FILE__, \
                             __LINE__);                                                       \
  } while (false)
