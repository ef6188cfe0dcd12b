#include "common/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace moiety {
namespace {

Error errno_error(const std::filesystem::path& path, const char* action) {
  const int number = errno;
  return fail(number == ENOENT ? ErrorCode::kNotFound : ErrorCode::kIo,
              path.string() + ": cannot " + action + ": " + std::strerror(number));
}

Result<std::string> read(const std::filesystem::path& path,
                         std::uint64_t max_bytes,
                         bool may_be_a_pipe) {
  // Opening a pipe that nobody writes to would wait.
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | (may_be_a_pipe ? 0 : O_NONBLOCK)));
  if (!fd) return open_error(path);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return errno_error(path, "stat");
  if (S_ISDIR(info.st_mode)) {
    return fail(ErrorCode::kInvalidArgument, path.string() + ": is a directory, a file is needed");
  }
  if (!may_be_a_pipe && !S_ISREG(info.st_mode)) {
    return fail(ErrorCode::kInvalidArgument,
                path.string() + ": is a pipe or device, a file is needed");
  }
  std::string content;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t got = ::read(fd.get(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno_error(path, "read");
    if (got == 0) return content;
    content.append(buffer, static_cast<std::size_t>(got));
    if (content.size() > max_bytes) {
      return fail(ErrorCode::kInvalidArgument, path.string() + ": is larger than the limit of " +
                                                   std::to_string(max_bytes) + " bytes");
    }
  }
}

}  // namespace

Fd::~Fd() {
  if (fd_ >= 0) ::close(fd_);
}

Result<std::string> read_file(const std::filesystem::path& path, std::uint64_t max_bytes) {
  return read(path, max_bytes, true);
}

Result<std::string> read_regular_file(const std::filesystem::path& path, std::uint64_t max_bytes) {
  return read(path, max_bytes, false);
}

bool entry_exists(const std::filesystem::path& path) {
  std::error_code unreadable;
  return std::filesystem::exists(std::filesystem::symlink_status(path, unreadable));
}

Error open_error(const std::filesystem::path& path) {
  const int number = errno;
  std::error_code no_link;
  const std::filesystem::path target = std::filesystem::read_symlink(path, no_link);
  if (number == ENOENT && !no_link) {
    return fail(ErrorCode::kNotFound,
                path.string() + ": is a link to " + target.string() + ", which is not there");
  }
  errno = number;
  return errno_error(path, "open");
}

Result<void> write_file(const std::filesystem::path& path, std::string_view content) {
  const std::filesystem::path temporary = path.string() + ".tmp." + std::to_string(::getpid());
  Fd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!fd) return errno_error(path, "create");
  while (!content.empty()) {
    const ssize_t wrote = ::write(fd.get(), content.data(), content.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) {
      Error error = errno_error(path, "write");
      ::unlink(temporary.c_str());
      return error;
    }
    content.remove_prefix(static_cast<std::size_t>(wrote));
  }
  if (::fsync(fd.get()) != 0 || ::rename(temporary.c_str(), path.c_str()) != 0) {
    Error error = errno_error(path, "write");
    ::unlink(temporary.c_str());
    return error;
  }
  return {};
}

}  // namespace moiety
