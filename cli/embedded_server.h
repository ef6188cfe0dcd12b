#pragma once

#include <sys/types.h>

#include <filesystem>
#include <string>
#include <vector>

#include "common/result.h"

namespace moiety::cli {

/// `moiety serve` as a child process; ended by the destructor.
class EmbeddedServer {
 public:
  EmbeddedServer() = default;
  EmbeddedServer(const EmbeddedServer&) = delete;
  EmbeddedServer& operator=(const EmbeddedServer&) = delete;
  ~EmbeddedServer();

  /// Starts it on a free port with these further flags, and waits until it listens. Returns its
  /// URL. kUnavailable with the end of the log when it ends; kDeadlineExceeded.
  Result<std::string> start(const std::vector<std::string>& flags,
                            const std::filesystem::path& log);
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
};

}  // namespace moiety::cli
