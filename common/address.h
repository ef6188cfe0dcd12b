#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/result.h"

namespace moiety {

/// A host, as a name or an address without brackets, and a port.
struct HostPort {
  std::string host;
  std::uint16_t port = 0;
};

/// "host:port"; an IPv6 address stands in brackets, also if it was given in them.
std::string format_address(std::string_view host, std::uint16_t port);

/// Reads that back. kInvalidArgument: no host, no port below 65536, or an IPv6 address without
/// brackets.
Result<HostPort> parse_address(std::string_view text);

/// Whether only this machine reaches the host: 127.x.y.z, ::1, or the name localhost. Other names
/// are not looked up.
bool is_loopback(std::string_view host);

/// Whether it stands for every address of this machine: 0.0.0.0 or ::.
bool is_wildcard(std::string_view host);

}  // namespace moiety
