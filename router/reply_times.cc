#include "router/reply_times.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <vector>

namespace moiety {
namespace {

constexpr int kFactor = 8;
constexpr int kHedgeFactor = 2;

}  // namespace

void ReplyTimes::add(std::size_t rows, std::chrono::nanoseconds time) {
  const auto index = std::min<std::size_t>(kBuckets - 1, std::bit_width(rows));
  Bucket& bucket = buckets_[index];
  const auto micros = static_cast<std::uint32_t>(
      std::clamp<std::int64_t>(std::chrono::duration_cast<std::chrono::microseconds>(time).count(),
                               1, std::numeric_limits<std::uint32_t>::max()));
  std::uint32_t& place = bucket.micros[bucket.count++ % kTimes];
  const std::uint32_t before = place;
  place = micros;
  if (micros >= bucket.largest) {
    bucket.largest = micros;
  } else if (before == bucket.largest) {
    bucket.largest = *std::max_element(bucket.micros.begin(), bucket.micros.end());
  }
}

std::chrono::nanoseconds ReplyTimes::p99(std::size_t rows) const {
  const auto index = std::min<std::size_t>(kBuckets - 1, std::bit_width(rows));
  for (std::size_t i = index + 1; i-- > 0;) {
    if (buckets_[i].count < kLeast) continue;
    return std::chrono::microseconds(std::uint64_t{buckets_[i].largest} << (index - i));
  }
  for (std::size_t i = index + 1; i < kBuckets; ++i) {
    if (buckets_[i].count >= kLeast) return std::chrono::microseconds(buckets_[i].largest);
  }
  return std::chrono::nanoseconds(0);
}

std::chrono::nanoseconds ReplyTimes::allowed(std::size_t rows, const ReplyLimits& limits) const {
  const std::chrono::nanoseconds usual = p99(rows);
  if (usual.count() == 0) return limits.cap;
  return std::clamp<std::chrono::nanoseconds>(usual * kFactor, std::min(limits.floor, limits.cap),
                                              limits.cap);
}

std::optional<std::chrono::nanoseconds> hedge_after(std::span<const ReplyTimes* const> workers,
                                                    std::size_t rows,
                                                    const ReplyLimits& limits) {
  std::vector<std::chrono::nanoseconds> known;
  for (const ReplyTimes* times : workers) {
    if (const auto p99 = times->p99(rows); p99.count() > 0) known.push_back(p99);
  }
  if (known.empty() || limits.hedge_floor.count() == 0) return std::nullopt;
  const auto middle = known.begin() + static_cast<std::ptrdiff_t>((known.size() - 1) / 2);
  std::nth_element(known.begin(), middle, known.end());
  return std::max<std::chrono::nanoseconds>(*middle * kHedgeFactor, limits.hedge_floor);
}

}  // namespace moiety
