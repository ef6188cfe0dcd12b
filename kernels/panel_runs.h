#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace moiety::kernels {

/// Cuts the packed weights of one parallel loop into runs of panels, one per task: long ones first,
/// because a core that goes on reading elsewhere needs about a microsecond to reach its speed, and
/// short ones last, so that all threads end at about the same time.
class PanelRuns {
 public:
  /// No limit on a run.
  static constexpr std::size_t kAnyBytes = SIZE_MAX;

  /// `bytes` of weights in all.
  PanelRuns(std::size_t bytes, std::size_t threads)
      : left_(bytes),
        threads_(threads),
        least_(std::min(kLeastBytes, bytes / (threads * kLeastPerThread))) {}

  /// How many of a matrix's remaining `panels` (> 0), each of `panel_bytes`, the next task takes:
  /// at least 1, otherwise at most `most_bytes` of them.
  std::int32_t take(std::int32_t panels, std::size_t panel_bytes, std::size_t most_bytes) {
    const std::size_t share = std::min(most_bytes, std::max(least_, left_ / (2 * threads_)));
    const std::size_t fit = std::max<std::size_t>(1, share / std::max<std::size_t>(1, panel_bytes));
    std::int32_t count = panels;
    if (fit < static_cast<std::size_t>(panels)) {
      count = static_cast<std::int32_t>(fit);
      if (count > kPanelGroup) count -= count % kPanelGroup;
    }
    left_ -= std::min(left_, static_cast<std::size_t>(count) * panel_bytes);
    return count;
  }

 private:
  static constexpr std::size_t kLeastBytes = 64 << 10;
  static constexpr std::size_t kLeastPerThread = 12;
  static constexpr std::int32_t kPanelGroup = 4;  // that kernels work on at a time

  std::size_t left_;
  std::size_t threads_;
  std::size_t least_;
};

}  // namespace moiety::kernels
