#pragma once

#include <cstdint>

namespace moiety {

/// A number above 0 that differs between processes, also those of other hosts and containers, where
/// pids and addresses repeat: the time of the call in nanoseconds. Call it once per process.
std::uint64_t new_incarnation();

}  // namespace moiety
