#include "coordinator/run_file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cerrno>
#include <cstring>

#include "common/file.h"

namespace moiety::coordinator {

namespace json = boost::json;

namespace {

/// The pid of the live coordinator that wrote `file`; 0 if there is none.
pid_t live_owner(const std::filesystem::path& file) {
  const auto text = read_file(file, 1 << 16);
  if (!text) return 0;
  boost::system::error_code error;
  const json::value parsed = json::parse(*text, error);
  if (error || !parsed.is_object()) return 0;
  const json::value* pid = parsed.as_object().if_contains("pid");
  if (pid == nullptr || !pid->is_int64()) return 0;
  const auto owner = static_cast<pid_t>(pid->as_int64());
  if (owner <= 1 || owner == ::getpid() || ::kill(owner, 0) != 0) return 0;
  // The pid may belong to another program by now.
  std::error_code link_error;
  const auto program =
      std::filesystem::read_symlink(fmt::format("/proc/{}/exe", owner), link_error);
  const auto ours = std::filesystem::read_symlink("/proc/self/exe", link_error);
  return program.filename() == ours.filename() ? owner : 0;
}

Error io_error(const std::filesystem::path& path) {
  return fail(ErrorCode::kIo,
              fmt::format("{}: cannot write: {}", path.string(), std::strerror(errno)));
}

}  // namespace

Result<RunFile> RunFile::write(const std::filesystem::path& dir, const RunInfo& info) {
  std::error_code made;
  std::filesystem::create_directories(dir, made);
  if (made)
    return fail(ErrorCode::kIo, fmt::format("--run-dir {}: {}", dir.string(), made.message()));
  const std::filesystem::path path = std::filesystem::absolute(dir) / "coordinator.json";
  if (const pid_t owner = live_owner(path); owner != 0) {
    return fail(
        ErrorCode::kFailedPrecondition,
        fmt::format(
            "{}: the coordinator with pid {} runs already; stop it or give another --run-dir",
            path.string(), owner));
  }
  const std::string text = json::serialize(json::object{{"pid", ::getpid()},
                                                        {"model", info.served_name},
                                                        {"control_address", info.control_address},
                                                        {"admin_address", info.admin_address},
                                                        {"token", info.token}}) +
                           "\n";
  const std::filesystem::path temporary = path.string() + ".tmp." + std::to_string(::getpid());
  ::unlink(temporary.c_str());
  const Fd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd) return io_error(temporary);
  if (::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
      ::rename(temporary.c_str(), path.c_str()) != 0) {
    Error error = io_error(path);
    ::unlink(temporary.c_str());
    return error;
  }
  return RunFile(path);
}

RunFile::~RunFile() {
  if (!path_.empty()) ::unlink(path_.c_str());
}

}  // namespace moiety::coordinator
