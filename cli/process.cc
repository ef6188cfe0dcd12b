#include "cli/process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sstream>
#include <string_view>
#include <thread>

#include "common/file.h"

extern char** environ;

namespace moiety::cli {

Result<pid_t> start_process(const std::filesystem::path& program,
                            const std::vector<std::string>& arguments,
                            const std::vector<std::pair<std::string, std::string>>& environment,
                            const std::filesystem::path& log,
                            Lifetime lifetime) {
  const Fd out(::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (!out) return fail(ErrorCode::kIo, log.string() + ": cannot open: " + std::strerror(errno));
  const Fd in(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  // Everything that allocates happens before fork.
  std::vector<std::string> words = {program.string()};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<std::string> variables;
  for (const auto& [name, value] : environment) variables.push_back(name + "=" + value);
  for (char** own = environ; *own != nullptr; ++own) {
    const std::string_view variable(*own);
    const bool replaced = std::any_of(environment.begin(), environment.end(), [&](const auto& it) {
      return variable.substr(0, variable.find('=')) == it.first;
    });
    if (!replaced) variables.emplace_back(variable);
  }
  const auto pointers = [](std::vector<std::string>& strings) {
    std::vector<char*> result;
    for (std::string& string : strings) result.push_back(string.data());
    result.push_back(nullptr);
    return result;
  };
  const std::vector<char*> argv = pointers(words);
  const std::vector<char*> envp = pointers(variables);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0)
    return fail(ErrorCode::kIo, program.string() + ": cannot fork: " + std::strerror(errno));
  if (pid == 0) {
    if (lifetime == Lifetime::kWithUs) {
      ::prctl(PR_SET_PDEATHSIG, SIGTERM);
      if (::getppid() != parent) ::_exit(127);  // the parent ended before prctl
    }
    ::setsid();
    ::dup2(in.get(), STDIN_FILENO);
    ::dup2(out.get(), STDOUT_FILENO);
    ::dup2(out.get(), STDERR_FILENO);
    ::signal(SIGINT, SIG_DFL);
    ::signal(SIGTERM, SIG_DFL);
    ::execve(argv[0], argv.data(), envp.data());
    ::_exit(127);
  }
  return pid;
}

std::optional<int> poll_process(pid_t pid) {
  int status = 0;
  return ::waitpid(pid, &status, WNOHANG) == pid ? std::optional(status) : std::nullopt;
}

bool wait_process(pid_t pid, std::chrono::milliseconds grace) {
  const auto deadline = std::chrono::steady_clock::now() + grace;
  while (!poll_process(pid)) {
    if (std::chrono::steady_clock::now() >= deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return true;
}

void end_process(pid_t pid, std::chrono::milliseconds grace) {
  if (poll_process(pid)) return;
  ::kill(pid, SIGTERM);
  if (wait_process(pid, grace)) return;
  ::kill(pid, SIGKILL);
  int status = 0;
  ::waitpid(pid, &status, 0);
}

namespace {

/// Of this process's one thread.
std::vector<pid_t> living_children() {
  const auto text = read_file("/proc/thread-self/children");
  std::vector<pid_t> children;
  std::istringstream words(text ? *text : "");
  for (pid_t pid = 0; words >> pid;) {
    if (!poll_process(pid)) children.push_back(pid);
  }
  return children;
}

}  // namespace

Inheritance::Inheritance() { ::prctl(PR_SET_CHILD_SUBREAPER, 1); }

Inheritance::~Inheritance() {
  constexpr std::chrono::seconds kGrace{5};
  const std::vector<pid_t> left = living_children();
  for (pid_t pid : left) ::kill(pid, SIGTERM);
  for (pid_t pid : left) end_process(pid, kGrace);
  ::prctl(PR_SET_CHILD_SUBREAPER, 0);
}

void Inheritance::reap(const std::vector<pid_t>& own) {
  siginfo_t ended{};
  if (::waitid(P_ALL, 0, &ended, WEXITED | WNOHANG | WNOWAIT) != 0 || ended.si_pid == 0) return;
  if (std::find(own.begin(), own.end(), ended.si_pid) == own.end()) poll_process(ended.si_pid);
}

std::string describe_status(int status) {
  return WIFSIGNALED(status) ? "signal " + std::to_string(WTERMSIG(status))
                             : "exit status " + std::to_string(WEXITSTATUS(status));
}

Result<std::filesystem::path> sibling_program(const std::string& name) {
  std::error_code ec;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", ec);
  const std::filesystem::path program = self.parent_path() / name;
  if (ec || ::access(program.c_str(), X_OK) != 0) {
    return fail(ErrorCode::kNotFound, program.string() +
                                          ": is missing; it is built and installed together with " +
                                          self.filename().string() + " (and needs UCX)");
  }
  return program;
}

std::string tail(const std::filesystem::path& file, std::size_t lines, std::uintmax_t first) {
  auto content = read_file(file);
  if (!content) return "";
  content->erase(0, std::min<std::uintmax_t>(first, content->size()));
  while (content->ends_with('\n')) content->pop_back();
  std::size_t begin = content->size();
  for (std::size_t seen = 0; begin > 0; --begin) {
    if ((*content)[begin - 1] == '\n' && ++seen == lines) break;
  }
  return content->substr(begin);
}

}  // namespace moiety::cli
