#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

#include "common/result.h"

namespace moiety {

/// Reads a whole file of at most `max_bytes`; errors name the path (kNotFound, kIo,
/// kInvalidArgument when it is larger).
Result<std::string> read_file(const std::filesystem::path& path,
                              std::uint64_t max_bytes = std::uint64_t{1} << 30);
/// The same of a file that lies in a folder, such as a checkpoint's: a pipe or device, which one
/// could wait for, is refused.
Result<std::string> read_regular_file(const std::filesystem::path& path,
                                      std::uint64_t max_bytes = std::uint64_t{1} << 30);

/// Whether a folder holds an entry of this name, be it a link that leads nowhere: an optional file
/// that was meant to be there is read, and is an error, instead of passed over.
bool entry_exists(const std::filesystem::path& path);

/// What an open() that failed just now, by errno, says of `path` (kNotFound, kIo).
Error open_error(const std::filesystem::path& path);

/// Writes to a temporary file beside `path`, syncs it and renames it, so that readers see the old
/// or the new content and a full disk loses nothing.
Result<void> write_file(const std::filesystem::path& path, std::string_view content);

/// A file descriptor that closes itself.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd();
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

}  // namespace moiety
