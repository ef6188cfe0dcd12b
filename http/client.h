#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "common/result.h"
#include "http/server.h"

namespace moiety::http {

/// One request to an HTTP/1.1 server, blocking, on a connection of its own.
///
///   url      "http://127.0.0.1:8001/v1/status"
///   timeout  for the whole exchange
///   headers  further ones, by name; kInvalidArgument when one holds a control character
///
/// Any HTTP status is a Response. kUnavailable: nobody answers (the message names the address);
/// kDeadlineExceeded.
Result<Response> request(std::string_view method,
                         std::string_view url,
                         std::string body,
                         std::chrono::milliseconds timeout,
                         const std::map<std::string, std::string>& headers = {});

/// The same, handing the body on piece by piece as it arrives (for server-sent events).
/// Response::body stays empty.
Result<Response> request_stream(std::string_view method,
                                std::string_view url,
                                std::string body,
                                std::chrono::milliseconds timeout,
                                const std::function<void(std::string_view piece)>& on_piece);

}  // namespace moiety::http
