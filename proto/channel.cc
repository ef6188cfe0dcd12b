#include "proto/channel.h"

#include <fmt/format.h>

#include <atomic>
#include <boost/asio/connect.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <exception>
#include <optional>
#include <thread>

#include "common/address.h"
#include "common/check.h"
#include "common/log.h"
#include "proto/convert.h"
#include "proto/peer.h"

namespace moiety::proto {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using tcp = asio::ip::tcp;

/// What the first frame (or the end) of a new connection says.
struct Handshake {
  bool done = false;
  Result<Welcome> answer = Error{};
};

Result<Welcome> read_answer(std::string_view payload, const std::string& address) {
  MOIETY_ASSIGN(ControlMessage message, decode(payload));
  if (Welcome* welcome = std::get_if<Welcome>(&message)) return std::move(*welcome);
  if (Refuse* refuse = std::get_if<Refuse>(&message)) {
    return with_context(address + " refused this process", std::move(refuse->error));
  }
  return fail(ErrorCode::kDataLoss, fmt::format("{} did not answer Hello with Welcome", address));
}

class ChannelImpl final : public Channel {
 public:
  ~ChannelImpl() override {
    if (!thread_.joinable()) return;
    MOIETY_CHECK(thread_.get_id() != std::this_thread::get_id(),
                 "a callback must not destroy its channel");
    close();
    work_.reset();
    thread_.join();
  }

  /// Runs on the caller's thread; our own starts when the connection stands.
  Result<void> open(const std::string& address, const Hello& hello, const ChannelOptions& options) {
    address_ = address;
    timeout_ = options.connect_timeout;
    deadline_ = Clock::now() + options.connect_timeout;
    stop_ = options.stop;
    const std::stop_callback wake_on_stop(stop_, [this] { asio::post(io_, [] {}); });
    MOIETY_ASSIGN(const HostPort peer_address, parse_address(address));
    MOIETY_ASSIGN(const std::string payload, encode(hello));
    MOIETY_ASSIGN(tcp::socket socket,
                  connect_socket(peer_address.host, std::to_string(peer_address.port)));

    peer_ = std::make_shared<Peer>(io_, std::move(socket), options.max_queued_bytes);
    const auto handshake = std::make_shared<Handshake>();
    peer_->resume({.on_frame =
                       [handshake, peer = peer_.get(), address](std::string_view answer) {
                         peer->pause();
                         handshake->done = true;
                         handshake->answer = read_answer(answer, address);
                       },
                   .on_end =
                       [handshake](Error error) {
                         if (handshake->done) return;
                         handshake->done = true;
                         handshake->answer = std::move(error);
                       }});
    MOIETY_TRY(peer_->send(payload));
    if (!run_until([&] { return handshake->done; })) return gave_up();
    MOIETY_ASSIGN(welcome_, std::move(handshake->answer));
    peer_->set_max_frame_bytes(kMaxMessageBytes);
    thread_ = std::thread([this] { io_.run(); });
    return {};
  }

  const Welcome& welcome() const override { return welcome_; }

  void start(ChannelCallbacks callbacks) override {
    asio::post(io_, [this, callbacks = std::move(callbacks)] {
      peer_->resume({.on_frame = [this, on_message = callbacks.on_message](
                                     std::string_view payload) { receive(payload, on_message); },
                     .on_end =
                         [this, on_closed = callbacks.on_closed](Error reason) {
                           if (!closed_) on_closed(std::move(reason));
                         }});
    });
  }

  Result<void> send(const ControlMessage& message) override {
    MOIETY_ASSIGN(const std::string payload, encode(message));
    return peer_->send(payload);
  }

  void close() override {
    if (closed_.exchange(true)) return;
    peer_->refuse_sends();
    asio::post(io_, [this] { peer_->close_gently(fail(ErrorCode::kCancelled, "closed")); });
  }

 private:
  /// Runs what is due on io_, on the caller's thread, until done() or until it is time to give up.
  template <class Done>
  bool run_until(const Done& done) {
    while (!done()) {
      if (stop_.stop_requested() || io_.run_one_until(deadline_) == 0) return false;
    }
    return true;
  }

  Error gave_up() const {
    if (stop_.stop_requested()) {
      return fail(ErrorCode::kCancelled, fmt::format("stopped while connecting to {}", address_));
    }
    return fail(ErrorCode::kDeadlineExceeded,
                fmt::format("no answer from {} within {} ms", address_, timeout_.count()));
  }

  Result<tcp::socket> connect_socket(const std::string& host, const std::string& port) {
    tcp::resolver resolver(io_);
    tcp::socket socket(io_);
    std::optional<error_code> result;
    resolver.async_resolve(host, port, [&](error_code error, tcp::resolver::results_type found) {
      if (error) {
        result = error;
        return;
      }
      asio::async_connect(socket, found, [&](error_code connect_error, const tcp::endpoint&) {
        result = connect_error;
      });
    });
    if (!run_until([&] { return result.has_value(); })) {
      resolver.cancel();
      error_code ignored;
      socket.close(ignored);
      work_.reset();
      io_.run();  // until the cancelled operations have left this frame
      return gave_up();
    }
    if (*result) {
      return fail(ErrorCode::kUnavailable,
                  fmt::format("cannot connect to {}: {}", address_, result->message()));
    }
    return socket;
  }

  void receive(std::string_view payload, const std::function<void(ControlMessage)>& on_message) {
    Result<ControlMessage> message = decode(payload);
    if (message) return on_message(std::move(*message));
    const Error error = with_context(peer_->remote_address(), message.error());
    log_error("control channel: {}; closing the connection", error.message);
    peer_->end(error);
  }

  std::string address_;
  std::chrono::milliseconds timeout_{0};
  Deadline deadline_;
  std::stop_token stop_;
  Welcome welcome_;
  asio::io_context io_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_{io_.get_executor()};
  std::shared_ptr<Peer> peer_;
  std::atomic<bool> closed_{false};
  std::thread thread_;
};

}  // namespace

Result<std::unique_ptr<Channel>> Channel::connect(const std::string& address,
                                                  const Hello& hello,
                                                  const ChannelOptions& options) {
  auto channel = std::make_unique<ChannelImpl>();
  try {
    MOIETY_TRY(channel->open(address, hello, options));
  } catch (const std::exception& error) {  // no thread or memory, ours or the resolver's: for now
    return fail(ErrorCode::kUnavailable,
                fmt::format("cannot connect to {}: {}", address, error.what()));
  }
  return std::unique_ptr<Channel>(std::move(channel));
}

}  // namespace moiety::proto
