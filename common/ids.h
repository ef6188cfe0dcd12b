#pragma once

#include <chrono>
#include <compare>
#include <cstdint>
#include <functional>

namespace moiety {

/// An integer that is not interchangeable with another kind of integer.
template <class Tag, class Int>
struct Id {
  Int value{};
  auto operator<=>(const Id&) const = default;
};

/// A worker's place in the fleet. Stable over restarts; the incarnation tells restarts apart.
using WorkerId = Id<struct WorkerTag, std::uint32_t>;
using RouterId = Id<struct RouterTag, std::uint32_t>;
/// Number of a placement; 0 is "none yet".
using Epoch = Id<struct EpochTag, std::uint64_t>;

/// One routed expert: (layer, original id in the checkpoint's expert list).
struct ExpertId {
  std::int32_t layer = 0;
  std::int32_t expert = 0;
  auto operator<=>(const ExpertId&) const = default;
};

using Clock = std::chrono::steady_clock;
/// Every wait ends at a deadline.
using Deadline = Clock::time_point;

}  // namespace moiety

template <class Tag, class Int>
struct std::hash<moiety::Id<Tag, Int>> {
  std::size_t operator()(const moiety::Id<Tag, Int>& id) const noexcept {
    return std::hash<Int>{}(id.value);
  }
};
template <>
struct std::hash<moiety::ExpertId> {
  std::size_t operator()(const moiety::ExpertId& id) const noexcept {
    return std::hash<std::uint64_t>{}((static_cast<std::uint64_t>(id.layer) << 32) |
                                      static_cast<std::uint32_t>(id.expert));
  }
};
