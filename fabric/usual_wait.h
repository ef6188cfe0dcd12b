#pragma once

#include <algorithm>
#include <chrono>

namespace moiety::fabric {

/// How long a wait polls before it sleeps: 50 us where waits have been as short as that lately.
/// Where they are longer, polling would only take a core from those that are waited for.
class UsualWait {
 public:
  std::chrono::nanoseconds spin() const {
    return usual_ < kSpin ? kSpin : std::chrono::nanoseconds(0);
  }
  /// A wait that ended with an event.
  void add(std::chrono::nanoseconds waited) {
    usual_ += (std::min(waited, 4 * kSpin) - usual_) / 8;
  }

 private:
  static constexpr std::chrono::nanoseconds kSpin{50'000};
  std::chrono::nanoseconds usual_{1'000'000};
};

}  // namespace moiety::fabric
