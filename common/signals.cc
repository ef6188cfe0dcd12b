#include "common/signals.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>

#include "common/check.h"

namespace moiety {

SignalWatcher::SignalWatcher(std::function<void(int)> on_signal)
    : stop_fd_(::eventfd(0, EFD_CLOEXEC)) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  const int signal_fd = ::signalfd(-1, &signals, SFD_CLOEXEC);
  MOIETY_CHECK(stop_fd_ >= 0 && signal_fd >= 0, "no file descriptors for signals");
  thread_ = std::thread([this, signal_fd, on_signal = std::move(on_signal)] {
    pollfd fds[2] = {{signal_fd, POLLIN, 0}, {stop_fd_, POLLIN, 0}};
    bool seen = false;
    for (;;) {
      if (::poll(fds, 2, -1) < 0) continue;
      if ((fds[1].revents & POLLIN) != 0) break;
      signalfd_siginfo info{};
      if (::read(signal_fd, &info, sizeof info) != sizeof info) continue;
      if (seen) ::_exit(128 + static_cast<int>(info.ssi_signo));
      seen = true;
      on_signal(static_cast<int>(info.ssi_signo));
    }
    ::close(signal_fd);
  });
}

SignalWatcher::~SignalWatcher() {
  const std::uint64_t one = 1;
  while (::write(stop_fd_, &one, sizeof one) < 0) {
  }
  thread_.join();
  ::close(stop_fd_);
}

}  // namespace moiety
