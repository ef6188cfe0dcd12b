#include "common/address.h"

#include <arpa/inet.h>
#include <fmt/core.h>

#include <charconv>

namespace moiety {

namespace {

std::string_view without_brackets(std::string_view host) {
  if (host.starts_with('[') && host.ends_with(']')) return host.substr(1, host.size() - 2);
  return host;
}

}  // namespace

std::string format_address(std::string_view host, std::uint16_t port) {
  host = without_brackets(host);
  const bool is_v6 = host.find(':') != std::string_view::npos;
  return is_v6 ? fmt::format("[{}]:{}", host, port) : fmt::format("{}:{}", host, port);
}

Result<HostPort> parse_address(std::string_view text) {
  const auto wrong = [text](const char* why) {
    return fail(
        ErrorCode::kInvalidArgument,
        fmt::format("not an address: '{}': {}; write HOST:PORT, or [IPV6]:PORT", text, why));
  };
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return wrong("there is no port");
  const std::string_view given = text.substr(0, colon);
  const std::string_view port = text.substr(colon + 1);
  HostPort address;
  address.host = without_brackets(given);
  if (address.host.empty()) return wrong("there is no host");
  if (given.size() == address.host.size() && given.find_first_of(":[]") != std::string_view::npos)
    return wrong("an IPv6 address stands in brackets");
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), address.port);
  if (error != std::errc{} || end != port.data() + port.size())
    return wrong("the port is no number below 65536");
  return address;
}

bool is_loopback(std::string_view host) {
  const std::string text(without_brackets(host));
  if (text == "localhost") return true;
  in_addr v4{};
  if (::inet_pton(AF_INET, text.c_str(), &v4) == 1) return ntohl(v4.s_addr) >> 24 == 127;
  in6_addr v6{};
  return ::inet_pton(AF_INET6, text.c_str(), &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

bool is_wildcard(std::string_view host) {
  const std::string text(without_brackets(host));
  in_addr v4{};
  if (::inet_pton(AF_INET, text.c_str(), &v4) == 1) return v4.s_addr == INADDR_ANY;
  in6_addr v6{};
  return ::inet_pton(AF_INET6, text.c_str(), &v6) == 1 && IN6_IS_ADDR_UNSPECIFIED(&v6);
}

}  // namespace moiety
