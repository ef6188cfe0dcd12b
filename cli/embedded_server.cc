#include "cli/embedded_server.h"

#include <thread>

#include "cli/command.h"
#include "cli/process.h"
#include "common/file.h"
#include "common/ids.h"

namespace moiety::cli {
namespace {

constexpr std::chrono::minutes kStartTimeout{10};  // a large model is read and packed

}  // namespace

EmbeddedServer::~EmbeddedServer() {
  if (pid_ > 0) end_process(pid_, std::chrono::seconds(10));
}

Result<std::string> EmbeddedServer::start(const std::vector<std::string>& flags,
                                          const std::filesystem::path& log) {
  std::error_code ec;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", ec);
  std::vector<std::string> arguments = {"serve", "--json", "--port", "0"};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  MOIETY_ASSIGN(pid_, start_process(self, arguments, {}, log, Lifetime::kWithUs));
  const Deadline deadline = Clock::now() + kStartTimeout;
  while (Clock::now() < deadline) {
    if (interrupted()) return interrupted_error();
    if (auto status = poll_process(pid_)) {
      pid_ = -1;
      return fail(ErrorCode::kUnavailable,
                  "moiety serve ended with " + describe_status(*status) + ":\n" + tail(log, 5));
    }
    const auto text = read_file(log);
    const std::size_t at = text ? text->find("{\"url\":\"") : std::string::npos;
    const std::size_t end = at == std::string::npos ? at : text->find("\"}", at);
    if (end != std::string::npos) return text->substr(at + 8, end - at - 8);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return fail(ErrorCode::kDeadlineExceeded,
              "moiety serve did not start in 10 minutes:\n" + tail(log, 5));
}

}  // namespace moiety::cli
