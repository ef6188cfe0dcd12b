#pragma once

#include <cstdint>

namespace moiety::cli {

/// The port of the router with this number: PORT, PORT + 1, ... without the admin API's. 0 stays 0
/// (a free one).
inline std::uint32_t router_port(std::uint16_t first,
                                 std::uint16_t admin_port,
                                 std::uint32_t router) {
  if (first == 0) return 0;
  const std::uint32_t port = first + router;
  return admin_port > first && admin_port <= port ? port + 1 : port;
}

}  // namespace moiety::cli
