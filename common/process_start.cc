#include "common/process_start.h"

#include <charconv>
#include <string_view>

#include "common/file.h"

namespace moiety {

std::optional<std::uint64_t> process_start_time(std::int64_t pid) {
  const auto stat = read_file("/proc/" + std::to_string(pid) + "/stat", 4096);
  if (!stat) return std::nullopt;
  // The name, field 2, stands in parentheses and may hold any character; field 3 follows it.
  const std::size_t name_end = stat->rfind(") ");
  if (name_end == std::string::npos) return std::nullopt;
  std::string_view fields = std::string_view(*stat).substr(name_end + 2);
  constexpr int kStartTime = 22;
  for (int field = 3; field < kStartTime; ++field) {
    const std::size_t space = fields.find(' ');
    if (space == std::string_view::npos) return std::nullopt;
    fields.remove_prefix(space + 1);
  }
  std::uint64_t ticks = 0;
  const auto [end, error] = std::from_chars(fields.data(), fields.data() + fields.size(), ticks);
  return error == std::errc{} ? std::optional(ticks) : std::nullopt;
}

std::string boot_id() {
  auto id = read_file("/proc/sys/kernel/random/boot_id", 256);
  if (!id) return "";
  while (!id->empty() && id->back() == '\n') id->pop_back();
  return *id;
}

}  // namespace moiety
