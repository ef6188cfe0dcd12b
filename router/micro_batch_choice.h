#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace moiety {

/// Into how many micro-batches steps are split (--micro-batches).
enum class MicroBatches : std::uint8_t { kAuto, kOne, kTwo };

/// Chooses for each step between one batch and two, by what steps of about as many rows took.
///
/// Two halves help when the step loop would otherwise wait while workers on other cores compute;
/// on shared cores, and for few rows, they cost: weights are read twice. So two are tried only
/// where the loop was blocked for a fifth of a step or more, on 8 steps out of 256, and kept (until
/// the next trial) where the median time per row was at least 3 % less. With nothing to wait for,
/// auto never splits. Not thread-safe.
class MicroBatchChoice {
 public:
  explicit MicroBatchChoice(MicroBatches wanted) : wanted_(wanted) {}

  /// For a step of so many rows: 1 or 2.
  std::int32_t choose(std::size_t rows);
  /// What that step took; `blocked`: how long the backend has been waited for since the start.
  void add(std::size_t rows,
           std::int32_t micro_batches,
           double seconds,
           std::chrono::nanoseconds blocked);

 private:
  static constexpr std::size_t kBuckets = 16;
  static constexpr std::size_t kTrialSteps = 8;
  static constexpr std::uint64_t kPeriod = 256;
  /// Steps whose numbers of rows have the same power of two.
  struct Bucket {
    std::uint64_t steps = 0;
    std::int32_t chosen = 1;
    bool blocked_enough = false;
    // Seconds per row of the last steps with one and with two.
    std::array<std::array<double, kTrialSteps>, 2> times{};
    std::array<std::uint64_t, 2> counts{};
    double blocked = 0, spent = 0;  // of steps with one batch, since the last decision
  };
  static std::size_t index(std::size_t rows);
  void decide(Bucket& bucket);

  const MicroBatches wanted_;
  std::array<Bucket, kBuckets> buckets_;
  std::chrono::nanoseconds blocked_before_{0};
};

}  // namespace moiety
