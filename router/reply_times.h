#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace moiety {

/// How long replies may take.
struct ReplyLimits {
  /// No worker counts as silent before. A process that shares its cores with others may not run for
  /// a few hundred milliseconds, and another router's prompt may be in front of a dispatch.
  std::chrono::milliseconds floor{1000};
  /// Every worker counts as silent then, also one that was never heard.
  std::chrono::milliseconds cap{10000};
  /// Nobody else is asked for what is late before (zero: nor afterwards). Twenty milliseconds pass
  /// easily where processes share cores, and asking costs another worker the same work again.
  std::chrono::milliseconds hedge_floor{20};
};

/// The times that one worker took for its replies, by the number of rows, and how long it may take
/// before it counts as silent.
///
/// For each power of two of rows the last 64 times are kept; their largest stands for the p99. A
/// reply may take 8 times as long: neighbours on its cores, a page that has to be read, and a queue
/// of other routers' messages all happen, and to be wrong costs a worker. Where fewer than 4 times
/// are known, those of the next smaller number of rows count, doubled for each power of two, then
/// those of the next larger. Nothing known: the cap.
class ReplyTimes {
 public:
  void add(std::size_t rows, std::chrono::nanoseconds time);
  /// The p99 of so many rows, as above; zero when nothing is known.
  std::chrono::nanoseconds p99(std::size_t rows) const;
  std::chrono::nanoseconds allowed(std::size_t rows, const ReplyLimits& limits) const;

 private:
  static constexpr std::size_t kTimes = 64;
  static constexpr std::size_t kLeast = 4;
  static constexpr std::size_t kBuckets = 16;
  struct Bucket {
    std::array<std::uint32_t, kTimes> micros{};  // a ring
    std::size_t count = 0;                       // ever
    std::uint32_t largest = 0;                   // of those kept
  };
  std::array<Bucket, kBuckets> buckets_;
};

/// How long a reply may take before others are asked too: twice the p99 of the middle one of
/// `workers` (of two: the faster one), at least the floor, so that one that is slow does not look
/// usual. Workers of which nothing is known do not count. nullopt where nothing is known at all, or
/// where nobody shall be asked.
std::optional<std::chrono::nanoseconds> hedge_after(std::span<const ReplyTimes* const> workers,
                                                    std::size_t rows,
                                                    const ReplyLimits& limits);

}  // namespace moiety
