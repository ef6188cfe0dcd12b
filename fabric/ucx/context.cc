#include "fabric/ucx/context.h"

#include <fmt/format.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <signal.h>
#include <ucs/debug/log_def.h>

#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>

#include "common/address.h"
#include "common/log.h"

namespace moiety::fabric::ucx {
namespace {

/// UCX prints what it dislikes to stdout, and a refused connection counts as an error. Our callers
/// get those as results, so the text is for debugging.
ucs_log_func_rc_t forward_log(const char* /*file*/,
                              unsigned /*line*/,
                              const char* /*function*/,
                              ucs_log_level_t level,
                              const ucs_log_component_config_t* /*component*/,
                              const char* format,
                              va_list arguments) {
  std::array<char, 512> text{};
  va_list copy;
  va_copy(copy, arguments);
  std::vsnprintf(text.data(), text.size(), format, copy);
  va_end(copy);
  if (level == UCS_LOG_LEVEL_FATAL) {
    log_error("ucx: {}", text.data());
  } else {
    log_debug("ucx: {}", text.data());
  }
  return UCS_LOG_FUNC_RC_STOP;
}

void route_log_once() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (std::getenv("UCX_LOG_LEVEL") == nullptr) ucs_log_push_handler(forward_log);
  });
}

/// UCX writes to sockets whose peer may be gone. A handler that the program has set stays.
void ignore_broken_pipes() {
  struct sigaction present = {};
  if (sigaction(SIGPIPE, nullptr, &present) != 0 || present.sa_handler != SIG_DFL) return;
  present.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &present, nullptr);
}

Result<ucp_context_h> create_context(const std::string& device) {
  ucp_config_t* config = nullptr;
  if (const auto status = ucp_config_read(nullptr, nullptr, &config); status != UCS_OK) {
    return ucx_error(ErrorCode::kInternal,
                     "UCX configuration (check the UCX_ environment variables)", status);
  }
  // PEER error handling needs TCP: shared memory never notices a death.
  const std::pair<const char*, const char*> settings[] = {{"TLS", "tcp,self"},
                                                          {"RNDV_THRESH", "4m"},
                                                          {"TCP_TX_SEG_SIZE", "128k"},
                                                          {"TCP_RX_SEG_SIZE", "128k"},
                                                          {"NET_DEVICES", device.c_str()}};
  for (const auto& [name, value] : settings) {
    if (*value == '\0') continue;
    if (std::getenv(fmt::format("UCX_{}", name).c_str()) != nullptr) continue;
    if (const auto status = ucp_config_modify(config, name, value); status != UCS_OK) {
      ucp_config_release(config);
      return ucx_error(ErrorCode::kInternal, fmt::format("UCX setting {}={}", name, value), status);
    }
  }
  ucp_params_t params = {};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  params.name = "moiety";
  ucp_context_h context = nullptr;
  const auto status = ucp_init(&params, config, &context);
  ucp_config_release(config);
  if (status != UCS_OK) return ucx_error(ErrorCode::kInternal, "UCX context", status);
  return context;
}

}  // namespace

Result<Context> Context::create(const std::string& device) {
  route_log_once();
  ignore_broken_pipes();
  MOIETY_ASSIGN(const ucp_context_h context, create_context(device));
  ucp_worker_params_t params = {};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  ucp_worker_h worker = nullptr;
  if (const auto status = ucp_worker_create(context, &params, &worker); status != UCS_OK) {
    ucp_cleanup(context);
    return ucx_error(ErrorCode::kInternal, "UCX worker", status);
  }
  int event_fd = -1;
  if (const auto status = ucp_worker_get_efd(worker, &event_fd); status != UCS_OK) {
    ucp_worker_destroy(worker);
    ucp_cleanup(context);
    return ucx_error(ErrorCode::kInternal, "UCX event descriptor", status);
  }
  return Context(context, worker, event_fd);
}

Context::Context(Context&& other) noexcept
    : context_(std::exchange(other.context_, nullptr)),
      worker_(std::exchange(other.worker_, nullptr)),
      event_fd_(std::exchange(other.event_fd_, -1)) {}

Context::~Context() {
  if (worker_ != nullptr) ucp_worker_destroy(worker_);
  if (context_ != nullptr) ucp_cleanup(context_);
}

Error ucx_error(ErrorCode code, std::string_view what, ucs_status_t status) {
  return fail(code, fmt::format("{}: {}", what, ucs_status_string(status)));
}

bool SocketAddress::is_wildcard() const {
  if (storage.ss_family == AF_INET) {
    return reinterpret_cast<const sockaddr_in&>(storage).sin_addr.s_addr == htonl(INADDR_ANY);
  }
  const auto& address = reinterpret_cast<const sockaddr_in6&>(storage).sin6_addr;
  return std::memcmp(&address, &in6addr_any, sizeof address) == 0;
}

std::string SocketAddress::text() const {
  std::array<char, NI_MAXHOST> host{};
  std::array<char, NI_MAXSERV> port{};
  const int failed =
      getnameinfo(reinterpret_cast<const sockaddr*>(&storage), length, host.data(), host.size(),
                  port.data(), port.size(), NI_NUMERICHOST | NI_NUMERICSERV);
  if (failed != 0) return "?";
  return storage.ss_family == AF_INET6 ? fmt::format("[{}]:{}", host.data(), port.data())
                                       : fmt::format("{}:{}", host.data(), port.data());
}

std::string interface_of(const SocketAddress& address) {
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return {};
  std::string name;
  for (const ifaddrs* each = all; each != nullptr && name.empty(); each = each->ifa_next) {
    if (each->ifa_addr == nullptr || each->ifa_addr->sa_family != address.storage.ss_family)
      continue;
    const void* wanted = nullptr;
    const void* here = nullptr;
    std::size_t size = 0;
    if (address.storage.ss_family == AF_INET) {
      wanted = &reinterpret_cast<const sockaddr_in&>(address.storage).sin_addr;
      here = &reinterpret_cast<const sockaddr_in*>(each->ifa_addr)->sin_addr;
      size = sizeof(in_addr);
    } else {
      wanted = &reinterpret_cast<const sockaddr_in6&>(address.storage).sin6_addr;
      here = &reinterpret_cast<const sockaddr_in6*>(each->ifa_addr)->sin6_addr;
      size = sizeof(in6_addr);
    }
    if (std::memcmp(wanted, here, size) == 0) name = each->ifa_name;
  }
  freeifaddrs(all);
  return name;
}

Result<SocketAddress> parse_host(const std::string& host, const std::string& port) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (host.empty() || getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) {
    return fail(ErrorCode::kInvalidArgument,
                fmt::format("'{}' port '{}' is not a numeric IP address and port", host, port));
  }
  SocketAddress address;
  address.length = found->ai_addrlen;
  std::memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
  freeaddrinfo(found);
  return address;
}

Result<SocketAddress> parse_address(const std::string& address) {
  MOIETY_ASSIGN(const HostPort parts, moiety::parse_address(address));
  return parse_host(parts.host, std::to_string(parts.port));
}

}  // namespace moiety::fabric::ucx
