#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace moiety {

/// When the process began, in clock ticks since the machine started (field 22 of /proc/PID/stat):
/// with the boot id it tells a process from a later one with the same number. nullopt if there is
/// none of this number.
std::optional<std::uint64_t> process_start_time(std::int64_t pid);

/// Names this start of the machine; empty where the system does not say.
std::string boot_id();

}  // namespace moiety
