#pragma once

#include <sys/socket.h>
#include <ucp/api/ucp.h>

#include <string>
#include <string_view>

#include "common/result.h"

namespace moiety::fabric::ucx {

/// A UCX context and its one worker (UCX's word for a progress engine; nothing to do with Moiety's
/// workers). Used by one thread at a time.
class Context {
 public:
  /// `device`: the network interface to use; empty: all.
  static Result<Context> create(const std::string& device = "");
  Context(Context&& other) noexcept;
  Context& operator=(Context&&) = delete;
  ~Context();

  ucp_worker_h worker() const { return worker_; }
  /// Becomes readable when ucp_worker_progress() has something to do; see ucp_worker_arm().
  int event_fd() const { return event_fd_; }

 private:
  Context(ucp_context_h context, ucp_worker_h worker, int event_fd)
      : context_(context), worker_(worker), event_fd_(event_fd) {}

  ucp_context_h context_;
  ucp_worker_h worker_;
  int event_fd_;
};

/// "what: UCX's text for the status".
Error ucx_error(ErrorCode code, std::string_view what, ucs_status_t status);

struct SocketAddress {
  sockaddr_storage storage = {};
  socklen_t length = 0;
  bool is_wildcard() const;
  /// "127.0.0.1:4711" or "[::1]:4711".
  std::string text() const;
};

/// The interface that has this address; empty when none has.
std::string interface_of(const SocketAddress& address);

/// Numeric hosts only, so that nothing waits for a name server.
Result<SocketAddress> parse_host(const std::string& host, const std::string& port);
/// The inverse of SocketAddress::text().
Result<SocketAddress> parse_address(const std::string& address);

}  // namespace moiety::fabric::ucx
