#include "cli/command.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <iostream>

#include "cli/interrupt.h"

namespace moiety::cli {
namespace {

std::atomic<bool> g_interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free);

extern "C" void on_interrupt(int signal) {
  if (g_interrupted.exchange(true)) ::_exit(128 + signal);  // a second Ctrl-C does not wait
}

}  // namespace

void install_interrupt_handler() {
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  struct sigaction before {};
  ::sigaction(SIGHUP, nullptr, &before);
  if (before.sa_handler != SIG_IGN) ::sigaction(SIGHUP, &action, nullptr);  // nohup ignores it
}

void remove_interrupt_handler() {
  for (int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction now {};
    ::sigaction(signal, nullptr, &now);
    if (now.sa_handler == on_interrupt) std::signal(signal, SIG_DFL);
  }
}

bool interrupted() { return g_interrupted; }
Error interrupted_error() { return fail(ErrorCode::kCancelled, "interrupted"); }

void print_json(const boost::json::value& value) {
  std::cout << boost::json::serialize(value) << std::endl;
}

Result<void> check_output() {
  std::cout.flush();
  const std::string why = std::fflush(stdout) == 0 ? "" : std::string(": ") + std::strerror(errno);
  if (why.empty() && std::ferror(stdout) == 0 && std::cout) return {};
  return fail(ErrorCode::kIo,
              "standard output cannot be written" + why + "; what was printed is not complete");
}

std::string human_bytes(double bytes) {
  static constexpr std::array kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < kUnits.size()) {
    bytes /= 1024;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.2f %s", bytes, kUnits[unit]);
  return text;
}

Progress::Progress(bool enabled) : enabled_(enabled && ::isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (shown_) std::fputs("\r\033[K", stderr);
}

void Progress::update(const std::string& text) {
  if (!enabled_) return;
  shown_ = true;
  std::fprintf(stderr, "\r\033[K%s", text.c_str());
}

}  // namespace moiety::cli
