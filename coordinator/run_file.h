#pragma once

#include <filesystem>
#include <string>

#include "common/result.h"

namespace moiety::coordinator {

/// What `moiety` needs to find a running coordinator.
struct RunInfo {
  std::string served_name;
  std::string control_address;
  std::string admin_address;
  std::string token;
};

/// DIR/coordinator.json: {"pid", "model", "control_address", "admin_address", "token"}. It holds
/// the secret, so only its owner can read it. Written at once as a whole; removed when this object
/// ends.
class RunFile {
 public:
  /// Makes `dir` if need be. kFailedPrecondition: the coordinator that wrote the present file is
  /// alive.
  static Result<RunFile> write(const std::filesystem::path& dir, const RunInfo& info);
  RunFile(RunFile&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  RunFile& operator=(RunFile&&) = delete;
  ~RunFile();

 private:
  explicit RunFile(std::filesystem::path path) : path_(std::move(path)) {}
  std::filesystem::path path_;
};

}  // namespace moiety::coordinator
