#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "common/result.h"

namespace moiety::http {

struct Request {
  std::string method;                          ///< "GET"
  std::string path;                            ///< decoded, without the query: "/v1/models"
  std::string query;                           ///< raw, without '?'
  std::map<std::string, std::string> headers;  ///< names in lower case
  std::string body;
};

struct Response {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::map<std::string, std::string> headers;  ///< further ones, e.g. Retry-After
};

/// Where the answer of one request goes. Thread-safe: a handler may keep it (shared_ptr) and answer
/// later from another thread. Exactly one of respond() or start_stream() is called, once; dropping
/// it unanswered gives 500.
class Responder {
 public:
  virtual ~Responder() = default;
  virtual void respond(Response response) = 0;
  /// Begins a chunked answer (server-sent events); write() then sends pieces in order, end() closes
  /// it.
  virtual void start_stream(int status,
                            std::string content_type,
                            std::map<std::string, std::string> headers) = 0;
  virtual void write(std::string piece) = 0;
  virtual void end() = 0;
  /// Bytes that wait for a slow client; the caller bounds them (cancels the request).
  virtual std::size_t unsent_bytes() const = 0;
  /// Called at most once, from the server's thread, when the client goes away before the answer is
  /// complete; at once if it already has.
  virtual void on_disconnect(std::function<void()> callback) = 0;
};

using Handler = std::function<void(Request request, std::shared_ptr<Responder> responder)>;

struct ServerOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;                  ///< 0 picks a free one
  std::size_t max_body_bytes = 16u << 20;  ///< beyond: 413
  /// Beyond: 503 and close. Less where the process may not have enough descriptors open
  /// (connections_within).
  std::size_t max_connections = 4096;
  std::chrono::seconds idle_timeout{60};  ///< keep-alive connections and slow senders (README.md)
  /// The body of an error that the server itself makes (400, 413, 500, 503): status and sentence
  /// in, JSON out.
  std::function<std::string(int status, std::string_view message)> error_body;
};

/// How many connections a server serves of `wanted` where a process may have `descriptors` open:
/// half at most, so that a quarter stays free beside those that are told to come again. At least
/// one.
std::size_t connections_within(std::size_t wanted, std::size_t descriptors);

/// An HTTP/1.1 server with keep-alive on a thread of its own. The handler runs on that thread and
/// must not block.
class Server {
 public:
  /// Binds, listens and starts. kUnavailable when the address is taken (the message names it).
  static Result<std::unique_ptr<Server>> start(ServerOptions options, Handler handler);
  virtual ~Server() = default;  ///< stops
  virtual std::uint16_t port() const = 0;
  /// Stops accepting, lets answers under way finish until `grace` has passed, then closes
  /// everything.
  virtual void stop(std::chrono::milliseconds grace) = 0;
};

}  // namespace moiety::http
