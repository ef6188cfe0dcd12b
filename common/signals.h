#pragma once

#include <functional>
#include <thread>

namespace moiety {

/// Turns SIGINT and SIGTERM into a callback on a thread of its own. Make it before any other
/// thread: it blocks the signals in the calling thread, and threads started later inherit that. A
/// second signal of either kind ends the process at once.
class SignalWatcher {
 public:
  explicit SignalWatcher(std::function<void(int signal)> on_signal);
  ~SignalWatcher();
  SignalWatcher(const SignalWatcher&) = delete;
  SignalWatcher& operator=(const SignalWatcher&) = delete;

 private:
  int stop_fd_;
  std::thread thread_;
};

}  // namespace moiety
