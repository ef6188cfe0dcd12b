#include "proto/peer.h"

#include <fmt/format.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <boost/asio/post.hpp>
#include <boost/asio/write.hpp>
#include <utility>

#include "common/address.h"
#include "common/check.h"
#include "proto/channel.h"

namespace moiety::proto {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using tcp = asio::ip::tcp;

constexpr std::size_t kHeaderBytes = 4;
constexpr std::chrono::seconds kCloseTime{1};
// Bytes that the other host does not acknowledge for so long end the connection; without this TCP
// itself tries for a quarter of an hour.
constexpr std::chrono::milliseconds kUnacknowledged{4000};

std::size_t frame_bytes(const char* header) {
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < kHeaderBytes; ++i) {
    bytes |= static_cast<std::size_t>(static_cast<unsigned char>(header[i])) << (8 * i);
  }
  return bytes;
}

std::string make_frame(std::string_view payload) {
  std::string frame;
  frame.reserve(kHeaderBytes + payload.size());
  for (std::size_t i = 0; i < kHeaderBytes; ++i) {
    frame.push_back(static_cast<char>((payload.size() >> (8 * i)) & 0xff));
  }
  frame.append(payload);
  return frame;
}

}  // namespace

Peer::Peer(asio::io_context& io, tcp::socket socket, std::size_t max_queued_bytes)
    : io_(io),
      socket_(std::move(socket)),
      timer_(io),
      max_frame_bytes_(kMaxHelloBytes),
      max_queued_bytes_(max_queued_bytes) {
  error_code error;
  const tcp::endpoint remote = socket_.remote_endpoint(error);
  if (error) {
    remote_address_ = "(unknown)";
  } else {
    remote_address_ = format_address(remote.address().to_string(), remote.port());
  }
  socket_.set_option(tcp::no_delay(true), error);
  // A host that is gone says nothing. Clients send a heartbeat every second, so this tells them.
  const int timeout = static_cast<int>(kUnacknowledged.count());
  setsockopt(socket_.native_handle(), IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof timeout);
}

Error Peer::lost(const error_code& error) const {
  if (error == asio::error::eof && !in_.empty()) {
    return fail(
        ErrorCode::kDataLoss,
        fmt::format("{} closed the connection in the middle of a message", remote_address_));
  }
  if (error == asio::error::eof) {
    return fail(ErrorCode::kUnavailable, fmt::format("{} closed the connection", remote_address_));
  }
  return fail(ErrorCode::kUnavailable,
              fmt::format("the connection to {} was lost: {}", remote_address_, error.message()));
}

void Peer::resume(Events events) {
  MOIETY_CHECK(!delivering_, "resume() must not be called in on_frame");
  if (closing_) return;
  if (ended_) return events.on_end(end_reason_);
  events_ = std::move(events);
  paused_ = false;
  deliver();
}

void Peer::read() {
  if (reading_ || ended_) return;
  reading_ = true;
  socket_.async_read_some(asio::buffer(read_buffer_),
                          [self = shared_from_this()](error_code error, std::size_t count) {
                            self->reading_ = false;
                            if (self->ended_) return;
                            if (error) {
                              if (self->closing_) return self->end(self->close_reason_);
                              return self->end(self->lost(error));
                            }
                            if (!self->closing_) self->in_.append(self->read_buffer_.data(), count);
                            self->deliver();
                          });
}

/// Hands on the whole frames of in_, then reads more.
void Peer::deliver() {
  std::size_t used = 0;
  delivering_ = true;
  while (!paused_ && !closing_ && !ended_ && in_.size() - used >= kHeaderBytes) {
    const std::size_t bytes = frame_bytes(in_.data() + used);
    if (bytes > max_frame_bytes_) {
      end(fail(ErrorCode::kDataLoss,
               fmt::format("{} announced a message of {} bytes, at most {} are allowed",
                           remote_address_, bytes, max_frame_bytes_.load())));
      break;
    }
    if (in_.size() - used - kHeaderBytes < bytes) break;
    const std::string_view payload(in_.data() + used + kHeaderBytes, bytes);
    used += kHeaderBytes + bytes;
    events_.on_frame(payload);
  }
  delivering_ = false;
  in_.erase(0, used);
  if (!paused_ || closing_) read();
}

void Peer::set_deadline(Deadline deadline, std::string_view what) {
  if (ended_) return;
  timer_.expires_at(deadline);  // cancels the earlier wait
  if (deadline == Deadline::max()) return;
  timer_.async_wait(
      [self = shared_from_this(), deadline, what = std::string(what)](error_code error) {
        // A wait that was already due cannot be cancelled: look whether it was replaced.
        if (error || self->ended_ || self->timer_.expiry() != deadline) return;
        if (self->closing_) return self->end(self->close_reason_);
        self->end(
            fail(ErrorCode::kDeadlineExceeded, fmt::format("{}: {}", self->remote_address_, what)));
      });
}

Result<void> Peer::send(std::string_view payload) {
  std::string frame = make_frame(payload);
  std::lock_guard lock(mutex_);
  if (refusing_) {
    return fail(ErrorCode::kUnavailable,
                fmt::format("the connection to {} is closed", remote_address_));
  }
  if (queued_bytes_ + frame.size() > max_queued_bytes_) {
    return fail(ErrorCode::kResourceExhausted,
                fmt::format("{} does not keep up: {} bytes wait to be sent", remote_address_,
                            queued_bytes_));
  }
  queued_bytes_ += frame.size();
  queue_.push_back(std::move(frame));
  if (!pump_posted_) {
    pump_posted_ = true;
    asio::post(io_, [self = shared_from_this()] { self->pump(); });
  }
  return {};
}

void Peer::refuse_sends() {
  std::lock_guard lock(mutex_);
  refusing_ = true;
}

void Peer::pump() {
  if (!writing_.empty() || ended_) return;
  {
    std::lock_guard lock(mutex_);
    pump_posted_ = false;
    writing_.swap(queue_);
  }
  if (writing_.empty()) return shutdown_if_sent();
  std::vector<asio::const_buffer> buffers;
  buffers.reserve(writing_.size());
  for (const std::string& frame : writing_) buffers.push_back(asio::buffer(frame));
  asio::async_write(socket_, buffers,
                    [self = shared_from_this()](error_code error, std::size_t count) {
                      if (self->ended_) return;
                      if (error) {
                        return self->end(self->closing_ ? self->close_reason_ : self->lost(error));
                      }
                      self->writing_.clear();
                      {
                        std::lock_guard lock(self->mutex_);
                        self->queued_bytes_ -= count;
                      }
                      self->pump();
                    });
}

void Peer::shutdown_if_sent() {
  if (!closing_) return;
  error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
}

void Peer::close_gently(Error reason) {
  if (ended_ || closing_) return;
  closing_ = true;
  close_reason_ = std::move(reason);
  refuse_sends();
  set_deadline(Clock::now() + kCloseTime, "");
  pump();
  if (!delivering_) read();
}

void Peer::end(Error reason) {
  if (ended_) return;
  ended_ = true;
  refuse_sends();
  error_code ignored;
  socket_.close(ignored);
  timer_.cancel();
  end_reason_ = std::move(reason);
  // We may be inside on_frame: its closure must live on until it returns.
  asio::post(io_, [self = shared_from_this()] {
    const Events events = std::exchange(self->events_, {});
    if (events.on_end) events.on_end(self->end_reason_);
  });
}

}  // namespace moiety::proto
