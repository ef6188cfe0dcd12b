#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "common/ids.h"

namespace moiety {

/// When a router tells the coordinator how many tokens selected each expert, and what it says: what
/// was counted since the last time. Confined to one thread.
class LoadReport {
 public:
  /// Plans look back over minutes, so seconds are enough; a large model's report has some 30 KB.
  static constexpr std::chrono::seconds kInterval{10};

  using Counts = std::vector<std::vector<std::uint64_t>>;  ///< [layer][expert]

  /// The first one is due at once.
  bool due(Clock::time_point now) const { return !sent_ || now - sent_at_ >= kInterval; }
  /// What `totals` has more than at the last sent(), or nothing when that is 0 for all.
  Counts since_last(const Counts& totals) const;
  /// since_last(totals) is on its way. Not called where it could not be sent: it is in the next.
  void sent(Counts totals, Clock::time_point now);

 private:
  bool sent_ = false;
  Clock::time_point sent_at_;
  Counts last_;  // empty before the first
};

}  // namespace moiety
