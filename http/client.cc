#include "http/client.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/basic_parser.hpp>
#include <optional>
#include <utility>

#include "common/ids.h"
#include "http/wire.h"

namespace moiety::http {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
using boost::system::error_code;
using tcp = asio::ip::tcp;
using HttpError = beast::http::error;

constexpr std::size_t kMaxHeaderBytes = 64u << 10;
/// The longest body that request() collects.
constexpr std::uint64_t kMaxBodyBytes = std::uint64_t{1} << 30;

class ResponseParser final : public beast::http::basic_parser<false> {
 public:
  explicit ResponseParser(const std::function<void(std::string_view)>& on_piece)
      : on_piece_(on_piece) {
    eager(true);
    header_limit(kMaxHeaderBytes);
    if (on_piece) {
      body_limit(boost::none);
    } else {
      body_limit(kMaxBodyBytes);
    }
  }

  Response response;

 private:
  void on_request_impl(
      beast::http::verb, beast::string_view, beast::string_view, int, error_code&) override {}
  void on_response_impl(int code, beast::string_view, int, error_code&) override {
    response.status = code;
    response.content_type.clear();
  }
  void on_field_impl(beast::http::field,
                     beast::string_view name,
                     beast::string_view value,
                     error_code&) override {
    std::string lower = lower_case(std::string_view(name.data(), name.size()));
    if (lower == "content-type") {
      response.content_type = std::string(value);
    } else {
      response.headers[std::move(lower)] = std::string(value);
    }
  }
  void on_header_impl(error_code&) override {}
  void on_body_init_impl(const boost::optional<std::uint64_t>&, error_code&) override {}
  std::size_t on_body_impl(beast::string_view body, error_code&) override {
    if (on_piece_) {
      on_piece_(std::string_view(body.data(), body.size()));
    } else {
      response.body.append(body.data(), body.size());
    }
    return body.size();
  }
  void on_chunk_header_impl(std::uint64_t, beast::string_view, error_code&) override {}
  std::size_t on_chunk_body_impl(std::uint64_t,
                                 beast::string_view body,
                                 error_code& error) override {
    return on_body_impl(body, error);
  }
  void on_finish_impl(error_code&) override {}

  const std::function<void(std::string_view)>& on_piece_;
};

/// One exchange, step by step, each step bounded by the same deadline.
class Exchange {
 public:
  Exchange(const Url& url, std::chrono::milliseconds timeout)
      : url_(url), timeout_(timeout), deadline_(Clock::now() + timeout) {}

  Result<void> connect() {
    tcp::resolver resolver(io_);
    tcp::resolver::results_type found;
    MOIETY_TRY(step("resolve", [&](auto done) {
      resolver.async_resolve(url_.host, std::to_string(url_.port),
                             [&found, done](error_code error, tcp::resolver::results_type results) {
                               found = std::move(results);
                               done(error);
                             });
    }));
    return step("connect to", [&](auto done) {
      asio::async_connect(socket_, found,
                          [done](error_code error, const tcp::endpoint&) { done(error); });
    });
  }

  Result<void> send(const std::string& bytes) {
    return step("send to", [&](auto done) {
      asio::async_write(socket_, asio::buffer(bytes),
                        [done](error_code error, std::size_t) { done(error); });
    });
  }

  Result<void> receive(std::optional<ResponseParser>& parser,
                       bool head,
                       const std::function<void(std::string_view)>& on_piece) {
    std::string in;
    std::array<char, 16384> buffer;
    for (;;) {
      if (!parser) {
        parser.emplace(on_piece);
        parser->skip(head);
      }
      error_code error;
      if (!in.empty()) {
        in.erase(0, parser->put(asio::buffer(in), error));
        if (error && error != HttpError::need_more) return malformed(error);
      }
      if (parser->is_done()) {
        if (parser->response.status / 100 != 1) return {};
        parser.reset();  // an interim answer such as 100 Continue
        continue;
      }
      std::size_t count = 0;
      bool eof = false;
      MOIETY_TRY(step("read from", [&](auto done) {
        socket_.async_read_some(asio::buffer(buffer), [&, done](error_code e, std::size_t n) {
          count = n;
          eof = e == asio::error::eof;
          done(eof ? error_code() : e);
        });
      }));
      if (eof) {
        if (parser->got_some()) parser->put_eof(error);
        if (!parser->is_done() || error) {
          return fail(ErrorCode::kUnavailable,
                      fmt::format("{} closed the connection before its answer was complete",
                                  url_.authority()));
        }
        return {};
      }
      in.append(buffer.data(), count);
    }
  }

 private:
  Result<void> malformed(const error_code& error) const {
    return fail(ErrorCode::kDataLoss, fmt::format("{} sent what is not a usable HTTP answer: {}",
                                                  url_.authority(), error.message()));
  }

  /// Starts an operation and runs it until it is done or the deadline passes.
  template <class Start>
  Result<void> step(std::string_view what, Start start) {
    bool finished = false;
    error_code error;
    start([&](error_code e) {
      finished = true;
      error = e;
    });
    io_.restart();
    io_.run_until(deadline_);
    if (!finished) {
      error_code ignored;
      socket_.close(ignored);
      io_.restart();
      io_.run();  // the cancelled operation's handler refers to this frame
      return fail(ErrorCode::kDeadlineExceeded, fmt::format("no answer from {} within {} ms",
                                                            url_.authority(), timeout_.count()));
    }
    if (error) {
      return fail(ErrorCode::kUnavailable,
                  fmt::format("cannot {} {}: {}", what, url_.authority(), error.message()));
    }
    return {};
  }

  const Url& url_;
  std::chrono::milliseconds timeout_;
  Deadline deadline_;
  asio::io_context io_{1};
  tcp::socket socket_{io_};
};

Result<Response> exchange_once(std::string_view method,
                               std::string_view url,
                               const std::string& body,
                               std::chrono::milliseconds timeout,
                               const std::map<std::string, std::string>& headers,
                               const std::function<void(std::string_view piece)>& on_piece) {
  MOIETY_ASSIGN(const Url target, parse_url(url));
  std::string bytes =
      fmt::format("{} {} HTTP/1.1\r\nHost: {}\r\nAccept: */*\r\nConnection: close\r\n", method,
                  target.target, target.authority());
  if (!body.empty() || method == "POST" || method == "PUT") {
    bytes += fmt::format("Content-Type: application/json\r\nContent-Length: {}\r\n", body.size());
  }
  for (const auto& [name, value] : headers) {
    const std::string line = name + ": " + value;
    if (std::any_of(line.begin(), line.end(),
                    [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; })) {
      return fail(ErrorCode::kInvalidArgument,
                  fmt::format("header {}: its value holds a control character", name));
    }
    bytes += line + "\r\n";
  }
  bytes += "\r\n";
  bytes += body;

  Exchange exchange(target, timeout);
  MOIETY_TRY(exchange.connect());
  // A server may answer and close before it has read the whole body (413): its answer says more
  // than the failed write, so look for one.
  const Result<void> sent = exchange.send(bytes);
  if (!sent && sent.error().code == ErrorCode::kDeadlineExceeded) return sent.error();
  std::optional<ResponseParser> parser;
  const Result<void> received = exchange.receive(parser, method == "HEAD", on_piece);
  if (!received) return sent ? received.error() : sent.error();
  return std::move(parser->response);
}

}  // namespace

Result<Response> request_stream(std::string_view method,
                                std::string_view url,
                                std::string body,
                                std::chrono::milliseconds timeout,
                                const std::function<void(std::string_view piece)>& on_piece) {
  return exchange_once(method, url, body, timeout, {}, on_piece);
}

Result<Response> request(std::string_view method,
                         std::string_view url,
                         std::string body,
                         std::chrono::milliseconds timeout,
                         const std::map<std::string, std::string>& headers) {
  return exchange_once(method, url, body, timeout, headers, nullptr);
}

}  // namespace moiety::http
