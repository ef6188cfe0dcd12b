#include "router/micro_batch_choice.h"

#include <algorithm>
#include <bit>

namespace moiety {
namespace {

constexpr double kLeastBlocked = 0.2;
constexpr double kLeastGain = 0.03;

}  // namespace

std::size_t MicroBatchChoice::index(std::size_t rows) {
  return std::min<std::size_t>(kBuckets - 1, std::bit_width(rows));
}

/// A period is: kTrialSteps with one batch, kTrialSteps with two if that may pay, the rest with
/// what was better.
std::int32_t MicroBatchChoice::choose(std::size_t rows) {
  if (wanted_ != MicroBatches::kAuto) return wanted_ == MicroBatches::kTwo ? 2 : 1;
  if (rows < 2) return 1;
  const Bucket& bucket = buckets_[index(rows)];
  const std::uint64_t at = bucket.steps % kPeriod;
  if (at < kTrialSteps) return 1;
  if (at < 2 * kTrialSteps) return bucket.blocked_enough ? 2 : 1;
  return bucket.chosen;
}

void MicroBatchChoice::decide(Bucket& bucket) {
  if (!bucket.blocked_enough || bucket.counts[1] < kTrialSteps) {
    bucket.chosen = 1;
    return;
  }
  std::array<double, 2> medians{};
  for (std::size_t i = 0; i < 2; ++i) {
    auto times = bucket.times[i];
    std::nth_element(times.begin(), times.begin() + kTrialSteps / 2, times.end());
    medians[i] = times[kTrialSteps / 2];
  }
  bucket.chosen = medians[1] < (1 - kLeastGain) * medians[0] ? 2 : 1;
}

void MicroBatchChoice::add(std::size_t rows,
                           std::int32_t micro_batches,
                           double seconds,
                           std::chrono::nanoseconds blocked) {
  if (wanted_ != MicroBatches::kAuto || rows == 0) return;
  const double waited = std::chrono::duration<double>(blocked - blocked_before_).count();
  blocked_before_ = blocked;
  Bucket& bucket = buckets_[index(rows)];
  const std::uint64_t at = bucket.steps++ % kPeriod;
  const std::size_t kind = micro_batches == 2 ? 1 : 0;
  bucket.times[kind][bucket.counts[kind]++ % kTrialSteps] = seconds / static_cast<double>(rows);
  if (at < kTrialSteps) {
    bucket.blocked += waited;
    bucket.spent += seconds;
  }
  if (at + 1 == kTrialSteps) {
    bucket.blocked_enough = bucket.blocked >= kLeastBlocked * bucket.spent;
    bucket.blocked = bucket.spent = 0;
    bucket.counts[1] = 0;
  } else if (at + 1 == 2 * kTrialSteps) {
    decide(bucket);
  }
}

}  // namespace moiety
