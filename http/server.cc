#include "http/server.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/http/basic_parser.hpp>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/descriptors.h"
#include "common/ids.h"
#include "common/log.h"
#include "http/wire.h"

namespace moiety::http {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
using boost::system::error_code;
using tcp = asio::ip::tcp;
using HttpError = beast::http::error;

constexpr std::size_t kMaxHeaderBytes = 16u << 10;
/// Bytes of a body that must come in a second, on average after the first idle_timeout.
constexpr std::size_t kLeastBodyRate = 1u << 10;
/// Bytes of later requests that are read while an answer is pending. Beyond that we stop reading,
/// and see a client that goes away only when we write.
constexpr std::size_t kMaxPipelinedBytes = 64u << 10;
/// How long a closing connection waits for the client's end, so that unread input does not reset
/// the connection before the client has read the answer.
constexpr std::chrono::seconds kLinger{2};
/// Connections beyond max_connections that may wait for their 503; half as many as are served where
/// that is less.
constexpr std::size_t kMaxRejected = 64;

class Connection;

/// What outlives the server while a Responder is still held somewhere.
struct Core {
  ServerOptions options;
  Handler handler;
  asio::io_context io{1};
  std::set<std::shared_ptr<Connection>> connections;  ///< server thread only
  std::atomic<bool> draining{false};

  std::mutex mutex;
  bool closed = false;   ///< under mutex: nothing runs `io` any more
  bool drained = false;  ///< under mutex: draining and no connection is left
  std::condition_variable drained_changed;

  /// Runs `task` on the server's thread; false when there is none any more.
  template <class Task>
  bool post(Task task) {
    std::lock_guard lock(mutex);
    if (closed) return false;
    asio::post(io, std::move(task));
    return true;
  }

  void note_if_drained() {
    if (!draining || !connections.empty()) return;
    std::lock_guard lock(mutex);
    drained = true;
    drained_changed.notify_all();
  }

  std::string error_body(int status, std::string_view message) const {
    if (options.error_body) return options.error_body(status, message);
    return fmt::format(R"({{"error":{{"message":"{}","code":{}}}}})", message, status);
  }
};

/// The answer to one request, shared by its Responder (any thread) and its Connection.
struct Answer {
  std::shared_ptr<Core> core;
  std::weak_ptr<Connection> connection;
  bool head = false;        ///< a HEAD request: no body
  bool http_1_0 = false;    ///< the client does not know chunks
  bool keep_alive = false;  ///< the client's wish

  std::atomic<std::size_t> unsent_bytes{0};
  std::mutex mutex;
  // All below under mutex.
  std::string queued;  ///< in order, ready for the socket
  bool pump_posted = false;
  bool started = false;    ///< respond() or start_stream() was called
  bool complete = false;   ///< everything is in `queued` or sent
  bool abandoned = false;  ///< a stream that lost its Responder: close without an end
  bool gone = false;       ///< the client left: drop everything
  bool close = false;      ///< close the connection afterwards
  std::function<void()> on_disconnect;

  /// Queues bytes and wakes the connection. Call under mutex.
  void push(std::string_view bytes);
  /// The whole answer at once. Call under mutex.
  void push_response(const Response& response);
  bool has_body(int status) const { return !head && status != 204 && status != 304; }
};

class RequestParser final : public beast::http::basic_parser<true> {
 public:
  RequestParser() {
    eager(true);
    header_limit(kMaxHeaderBytes);
  }

  Request request;  ///< without path and query
  std::string target;
  int version = 11;
  bool header_done = false;

  bool expects_continue() const {
    const auto it = request.headers.find("expect");
    return it != request.headers.end() && lower_case(it->second) == "100-continue";
  }

 private:
  void on_request_impl(beast::http::verb,
                       beast::string_view method,
                       beast::string_view path,
                       int number,
                       error_code&) override {
    request.method = std::string(method);
    target = std::string(path);
    version = number;
  }
  void on_response_impl(int, beast::string_view, int, error_code&) override {}
  void on_field_impl(beast::http::field,
                     beast::string_view name,
                     beast::string_view value,
                     error_code&) override {
    if (header_done) return;  // a trailer must not override a header
    std::string& field = request.headers[lower_case(std::string_view(name.data(), name.size()))];
    if (!field.empty()) field += ", ";
    field.append(value.data(), value.size());
  }
  void on_header_impl(error_code&) override { header_done = true; }
  void on_body_init_impl(const boost::optional<std::uint64_t>&, error_code&) override {}
  std::size_t on_body_impl(beast::string_view body, error_code&) override {
    request.body.append(body.data(), body.size());
    return body.size();
  }
  void on_chunk_header_impl(std::uint64_t, beast::string_view, error_code&) override {}
  std::size_t on_chunk_body_impl(std::uint64_t, beast::string_view body, error_code&) override {
    request.body.append(body.data(), body.size());
    return body.size();
  }
  void on_finish_impl(error_code&) override {}
};

/// One client. Confined to the server's thread; kept alive by Core::connections until close().
///
/// A read is always outstanding (up to kMaxPipelinedBytes), also while an answer is pending: that
/// is how a client that goes away is seen. Bytes of later requests wait in `in_` for their turn.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::shared_ptr<Core> core, tcp::socket socket)
      : core_(std::move(core)), socket_(std::move(socket)), timer_(core_->io) {}

  void start() {
    begin_request();
    read();
  }
  /// Answers without reading a request, then closes.
  void reject(int status, std::string_view message) {
    fail_request(status, message);
    read();
  }
  void pump();
  /// The server stops: closes what has no answer under way.
  void drain() {
    if (phase_ == Phase::kReading) close();
  }
  /// Ends the connection whatever it does, as if the client had gone.
  void client_gone();

 private:
  enum class Phase { kReading, kAnswering, kLingering };

  void begin_request();
  void read();
  void on_read(error_code error, std::size_t count);
  void parse();
  void dispatch();
  std::shared_ptr<Answer> begin_answer(bool keep_alive);
  void fail_request(int status, std::string_view message);
  void write_some(std::shared_ptr<Answer> counted);
  void finish_answer();
  void linger();
  void close();
  void set_deadline(Deadline deadline);
  void expect_progress() { set_deadline(Clock::now() + core_->options.idle_timeout); }
  /// The same for a body, which must also come at the least rate.
  void expect_body();
  void on_deadline();

  std::shared_ptr<Core> core_;
  tcp::socket socket_;
  asio::steady_timer timer_;
  Deadline deadline_ = Deadline::max();
  Deadline armed_for_ = Deadline::max();  ///< when timer_ fires; max: it is not armed

  Phase phase_ = Phase::kReading;
  std::optional<RequestParser> parser_;
  bool continue_sent_ = false;
  Clock::time_point body_began_{};  ///< when the header was complete
  std::string in_;                  ///< received, not parsed
  std::array<char, 8192> read_buffer_;
  bool reading_ = false;
  bool eof_ = false;  ///< the client sends no more

  std::shared_ptr<Answer> answer_;
  std::string out_;
  std::size_t out_sent_ = 0;
  bool writing_ = false;
  bool closed_ = false;
};

void Answer::push(std::string_view bytes) {
  if (gone) return;
  queued.append(bytes);
  unsent_bytes += bytes.size();
  if (pump_posted) return;
  pump_posted = true;
  core->post([weak = connection] {
    if (auto strong = weak.lock()) strong->pump();
  });
}

void Answer::push_response(const Response& response) {
  started = true;
  complete = true;
  close = close || !keep_alive || core->draining;
  std::string bytes =
      format_head({.status = response.status,
                   .content_type = response.content_type,
                   .headers = &response.headers,
                   .content_length =
                       response.status == 204 ? std::nullopt : std::optional(response.body.size()),
                   .chunked = false,
                   .close = close});
  if (has_body(response.status)) bytes += response.body;
  push(bytes);
}

class ResponderImpl final : public Responder {
 public:
  explicit ResponderImpl(std::shared_ptr<Answer> answer) : answer_(std::move(answer)) {}

  ~ResponderImpl() override {
    std::function<void()> forgotten;
    std::lock_guard lock(answer_->mutex);
    forgotten.swap(answer_->on_disconnect);
    if (!answer_->started) {
      answer_->push_response(
          {.status = 500,
           .body = answer_->core->error_body(500, "the server dropped this request"),
           .headers = {}});
    } else if (!answer_->complete) {
      answer_->abandoned = true;
      answer_->push("");
    }
  }

  void respond(Response response) override {
    std::function<void()> forgotten;  // destroyed after the lock is released
    std::lock_guard lock(answer_->mutex);
    MOIETY_CHECK(!answer_->started, "a request is answered once");
    answer_->push_response(response);
    forgotten.swap(answer_->on_disconnect);
  }

  void start_stream(int status,
                    std::string content_type,
                    std::map<std::string, std::string> headers) override {
    std::lock_guard lock(answer_->mutex);
    MOIETY_CHECK(!answer_->started, "a request is answered once");
    answer_->started = true;
    body_ = answer_->has_body(status);
    chunked_ = !answer_->http_1_0;
    answer_->close = !answer_->keep_alive || !chunked_ || answer_->core->draining;
    answer_->push(format_head({.status = status,
                               .content_type = content_type,
                               .headers = &headers,
                               .content_length = std::nullopt,
                               .chunked = chunked_ && status != 204 && status != 304,
                               .close = answer_->close}));
  }

  void write(std::string piece) override {
    std::lock_guard lock(answer_->mutex);
    MOIETY_CHECK(answer_->started && !answer_->complete, "write() belongs in a started stream");
    if (body_ && !piece.empty()) answer_->push(chunked_ ? format_chunk(piece) : piece);
  }

  void end() override {
    std::function<void()> forgotten;
    std::lock_guard lock(answer_->mutex);
    MOIETY_CHECK(answer_->started && !answer_->complete, "end() belongs in a started stream");
    answer_->complete = true;
    answer_->push(body_ && chunked_ ? kLastChunk : "");
    forgotten.swap(answer_->on_disconnect);
  }

  std::size_t unsent_bytes() const override { return answer_->unsent_bytes; }

  void on_disconnect(std::function<void()> callback) override {
    {
      std::lock_guard lock(answer_->mutex);
      if (answer_->complete) return;
      if (!answer_->gone) {
        answer_->on_disconnect = std::move(callback);
        return;
      }
    }
    if (!answer_->core->post(callback)) callback();
  }

 private:
  const std::shared_ptr<Answer> answer_;
  bool body_ = true;      ///< under the answer's mutex
  bool chunked_ = false;  ///< under the answer's mutex
};

void Connection::begin_request() {
  phase_ = Phase::kReading;
  answer_.reset();
  parser_.emplace();
  parser_->body_limit(core_->options.max_body_bytes);
  continue_sent_ = false;
  expect_progress();
}

void Connection::read() {
  if (reading_ || closed_ || eof_) return;
  if (phase_ == Phase::kAnswering && in_.size() >= kMaxPipelinedBytes) return;
  reading_ = true;
  socket_.async_read_some(asio::buffer(read_buffer_),
                          [self = shared_from_this()](error_code error, std::size_t count) {
                            self->reading_ = false;
                            if (!self->closed_) self->on_read(error, count);
                          });
}

void Connection::on_read(error_code error, std::size_t count) {
  if (error && error != asio::error::eof) return client_gone();
  if (error == asio::error::eof) {
    eof_ = true;
    if (phase_ != Phase::kAnswering) return close();
    std::unique_lock lock(answer_->mutex);
    const bool complete = answer_->complete;
    lock.unlock();
    if (!complete) client_gone();
    return;
  }
  if (phase_ != Phase::kLingering) in_.append(read_buffer_.data(), count);
  if (phase_ == Phase::kReading) parse();
  read();
}

/// Parses what has arrived; ends in kAnswering when a request is complete or bad.
void Connection::parse() {
  const bool was_started = parser_->got_some();
  const bool had_header = parser_->header_done;
  if (!was_started) {
    while (in_.starts_with("\r\n")) in_.erase(0, 2);
    if (in_.empty()) return;
  }
  bool need_more = false;
  while (!in_.empty() && !need_more && !parser_->is_done()) {
    error_code error;
    const std::size_t used = parser_->put(asio::buffer(in_), error);
    in_.erase(0, used);
    need_more = error == HttpError::need_more;
    if (error && !need_more) {
      if (error == HttpError::body_limit) {
        return fail_request(
            413, fmt::format("the body is larger than {} bytes", core_->options.max_body_bytes));
      }
      if (error == HttpError::header_limit) {
        return fail_request(431,
                            fmt::format("the header is larger than {} bytes", kMaxHeaderBytes));
      }
      return fail_request(400, fmt::format("malformed HTTP request: {}", error.message()));
    }
  }
  if (parser_->is_done()) return dispatch();
  // Chunk headers and trailers are not covered by the parser's own limit.
  if (in_.size() > kMaxHeaderBytes)
    return fail_request(431, "a chunk header or trailer is too large");
  if (parser_->header_done && parser_->expects_continue() && !continue_sent_ && !writing_) {
    continue_sent_ = true;
    if (parser_->request.body.empty()) {
      out_ = "HTTP/1.1 100 Continue\r\n\r\n";
      out_sent_ = 0;
      write_some(nullptr);
    }
  }
  // A header must be complete within one idle_timeout; a body must go on arriving.
  if (parser_->header_done) {
    if (!had_header) body_began_ = Clock::now();
    expect_body();
  } else if (!was_started) {
    expect_progress();
  }
}

void Connection::expect_body() {
  const std::chrono::seconds earned(parser_->request.body.size() / kLeastBodyRate);
  set_deadline(std::min(Clock::now(), body_began_ + earned) + core_->options.idle_timeout);
}

std::shared_ptr<Answer> Connection::begin_answer(bool keep_alive) {
  phase_ = Phase::kAnswering;
  set_deadline(Deadline::max());
  answer_ = std::make_shared<Answer>();
  answer_->core = core_;
  answer_->connection = weak_from_this();
  answer_->keep_alive = keep_alive;
  return answer_;
}

void Connection::dispatch() {
  Result<Target> target = parse_target(parser_->target);
  if (!target) return fail_request(400, target.error().message);
  if (parser_->version == 11 && !parser_->request.headers.contains("host")) {
    return fail_request(400, "the Host header is missing");
  }
  Request request = std::move(parser_->request);
  request.path = std::move(target->path);
  request.query = std::move(target->query);

  std::shared_ptr<Answer> answer = begin_answer(parser_->keep_alive() && parser_->version == 11);
  answer->head = request.method == "HEAD";
  answer->http_1_0 = parser_->version == 10;
  try {
    core_->handler(std::move(request), std::make_shared<ResponderImpl>(answer));
  } catch (const std::exception& e) {
    log_error("http: a handler threw: {}", e.what());
  }
  if (!eof_) return;
  std::unique_lock lock(answer->mutex);
  const bool complete = answer->complete;
  lock.unlock();
  if (!complete) client_gone();
}

void Connection::fail_request(int status, std::string_view message) {
  std::shared_ptr<Answer> answer = begin_answer(false);
  std::lock_guard lock(answer->mutex);
  answer->push_response(
      {.status = status, .body = core_->error_body(status, message), .headers = {}});
}

void Connection::pump() {
  if (closed_ || writing_ || phase_ != Phase::kAnswering) return;
  bool complete = false;
  bool abandoned = false;
  {
    std::lock_guard lock(answer_->mutex);
    answer_->pump_posted = false;
    out_ = std::move(answer_->queued);
    answer_->queued.clear();
    complete = answer_->complete;
    abandoned = answer_->abandoned;
  }
  out_sent_ = 0;
  if (!out_.empty()) {
    write_some(answer_);
  } else if (complete) {
    finish_answer();
  } else if (abandoned) {
    close();
  }
}

/// Writes the rest of out_; `counted` is the answer whose unsent_bytes it reduces, if any.
void Connection::write_some(std::shared_ptr<Answer> counted) {
  writing_ = true;
  expect_progress();
  socket_.async_write_some(asio::buffer(out_.data() + out_sent_, out_.size() - out_sent_),
                           [self = shared_from_this(), counted = std::move(counted)](
                               error_code error, std::size_t count) mutable {
                             if (self->closed_) return;
                             if (error) return self->client_gone();
                             if (counted) counted->unsent_bytes -= count;
                             self->out_sent_ += count;
                             if (self->out_sent_ < self->out_.size())
                               return self->write_some(std::move(counted));
                             self->writing_ = false;
                             self->out_.clear();
                             if (self->phase_ == Phase::kAnswering)
                               self->set_deadline(Deadline::max());
                             self->pump();
                           });
}

void Connection::finish_answer() {
  bool close_now = core_->draining || (eof_ && in_.empty());
  {
    std::lock_guard lock(answer_->mutex);
    close_now = close_now || answer_->close;
  }
  if (close_now) return linger();
  begin_request();
  if (!in_.empty()) parse();
  if (eof_ && phase_ == Phase::kReading) return close();
  read();
}

void Connection::linger() {
  if (eof_) return close();
  error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
  phase_ = Phase::kLingering;
  answer_.reset();
  in_.clear();
  set_deadline(Clock::now() + kLinger);
  read();
}

void Connection::client_gone() {
  if (closed_) return;
  const std::shared_ptr<Answer> answer = answer_;
  close();
  if (!answer) return;
  std::function<void()> callback;
  {
    std::lock_guard lock(answer->mutex);
    callback.swap(answer->on_disconnect);
  }
  if (!callback) return;
  try {
    callback();
  } catch (const std::exception& e) {
    log_error("http: an on_disconnect callback threw: {}", e.what());
  }
}

void Connection::close() {
  if (closed_) return;
  closed_ = true;
  if (answer_) {
    std::lock_guard lock(answer_->mutex);
    answer_->gone = true;
    answer_->queued.clear();
    answer_->unsent_bytes = 0;
  }
  error_code ignored;
  socket_.close(ignored);
  timer_.cancel();
  answer_.reset();
  const std::shared_ptr<Connection> self = shared_from_this();
  core_->connections.erase(self);
  core_->note_if_drained();
}

void Connection::set_deadline(Deadline deadline) {
  deadline_ = deadline;
  // A later deadline needs no new timer: on_deadline looks again.
  if (deadline >= armed_for_) return;
  armed_for_ = deadline;
  timer_.expires_at(deadline);
  timer_.async_wait([self = shared_from_this()](error_code error) {
    if (error || self->closed_) return;
    self->armed_for_ = Deadline::max();
    self->on_deadline();
  });
}

void Connection::on_deadline() {
  if (Clock::now() < deadline_) return set_deadline(deadline_);
  if (phase_ == Phase::kReading && parser_->got_some() && !writing_) {
    return fail_request(408, "the request did not arrive in time");
  }
  client_gone();
}

class ServerImpl final : public Server {
 public:
  ServerImpl(ServerOptions options, Handler handler) : core_(std::make_shared<Core>()) {
    core_->options = std::move(options);
    core_->options.max_connections =
        connections_within(core_->options.max_connections, descriptor_limit());
    core_->handler = std::move(handler);
  }
  ~ServerImpl() override { stop(std::chrono::milliseconds(0)); }

  Result<void> listen() {
    const ServerOptions& options = core_->options;
    const auto refuse = [&](const error_code& error) {
      return fail(ErrorCode::kUnavailable,
                  fmt::format("cannot listen on {}:{}: {}; choose another port", options.host,
                              options.port, error.message()));
    };
    error_code error;
    tcp::resolver resolver(core_->io);
    const auto found =
        resolver.resolve(options.host, std::to_string(options.port), tcp::resolver::passive, error);
    if (error) {
      return fail(ErrorCode::kInvalidArgument,
                  fmt::format("cannot listen on '{}': {}; give an address of this machine",
                              options.host, error.message()));
    }
    const tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (error) return refuse(error);
    port_ = acceptor_.local_endpoint(error).port();
    if (error) return refuse(error);
    accept();
    thread_ = std::thread([this] { core_->io.run(); });
    return {};
  }

  std::uint16_t port() const override { return port_; }

  void stop(std::chrono::milliseconds grace) override {
    std::lock_guard stopping(stop_mutex_);
    if (!thread_.joinable()) return;
    MOIETY_CHECK(thread_.get_id() != std::this_thread::get_id(),
                 "a handler cannot stop its own server");
    core_->post([this] {
      error_code ignored;
      acceptor_.close(ignored);
      retry_.cancel();
      core_->draining = true;
      for (const auto& connection : open_connections()) connection->drain();
      core_->note_if_drained();
    });
    {
      std::unique_lock lock(core_->mutex);
      core_->drained_changed.wait_for(
          lock, std::min<std::chrono::milliseconds>(grace, std::chrono::hours(24)),
          [this] { return core_->drained; });
    }
    core_->post([this] {
      for (const auto& connection : open_connections()) connection->client_gone();
    });
    work_.reset();
    thread_.join();
    {
      std::lock_guard lock(core_->mutex);
      core_->closed = true;
    }
    // Runs what other threads posted between the end of run() and `closed`.
    core_->io.restart();
    core_->io.poll();
  }

 private:
  std::vector<std::shared_ptr<Connection>> open_connections() const {
    return {core_->connections.begin(), core_->connections.end()};
  }

  void accept() {
    acceptor_.async_accept([this](error_code error, tcp::socket socket) {
      if (!acceptor_.is_open()) return;
      if (error) {
        log_warning("http: cannot accept a connection: {}", error.message());
        // Usually out of file descriptors: wait for some to be closed.
        retry_.expires_after(std::chrono::milliseconds(100));
        retry_.async_wait([this](error_code cancelled) {
          if (!cancelled && acceptor_.is_open()) accept();
        });
        return;
      }
      add(std::move(socket));
      accept();
    });
  }

  void add(tcp::socket socket) {
    const std::size_t open = core_->connections.size();
    const std::size_t limit = core_->options.max_connections;
    if (open >= limit + std::min(kMaxRejected, (limit + 1) / 2)) return;
    error_code ignored;
    socket.set_option(tcp::no_delay(true), ignored);
    auto connection = std::make_shared<Connection>(core_, std::move(socket));
    core_->connections.insert(connection);
    if (open >= limit) {
      connection->reject(503, "too many connections; try again later");
    } else {
      connection->start();
    }
  }

  std::shared_ptr<Core> core_;
  asio::executor_work_guard<asio::io_context::executor_type> work_{core_->io.get_executor()};
  tcp::acceptor acceptor_{core_->io};
  asio::steady_timer retry_{core_->io};
  std::uint16_t port_ = 0;
  std::mutex stop_mutex_;
  std::thread thread_;
};

}  // namespace

std::size_t connections_within(std::size_t wanted, std::size_t descriptors) {
  return std::clamp<std::size_t>(descriptors / 2, 1, std::max<std::size_t>(1, wanted));
}

Result<std::unique_ptr<Server>> Server::start(ServerOptions options, Handler handler) {
  auto server = std::make_unique<ServerImpl>(std::move(options), std::move(handler));
  MOIETY_TRY(server->listen());
  return std::unique_ptr<Server>(std::move(server));
}

}  // namespace moiety::http
