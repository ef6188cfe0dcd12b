#pragma once

#include <array>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "common/ids.h"
#include "common/result.h"

namespace moiety::proto {

/// One end of a connection that carries frames; what Channel and ChannelServer share.
///
/// send() may be called from any thread; everything else on the thread that runs the io_context.
/// Operations under way keep the object alive until it has ended.
class Peer : public std::enable_shared_from_this<Peer> {
 public:
  struct Events {
    std::function<void(std::string_view payload)> on_frame;
    std::function<void(Error)> on_end;  ///< once
  };

  Peer(boost::asio::io_context& io,
       boost::asio::ip::tcp::socket socket,
       std::size_t max_queued_bytes);

  /// "host:port" of the other side.
  const std::string& remote_address() const { return remote_address_; }

  /// Delivers frames until pause(); those already received come first. Replaces earlier events. If
  /// the connection has ended meanwhile, on_end is called at once.
  void resume(Events events);
  /// Stops delivering (may be called in on_frame). The end of the connection is not seen meanwhile.
  void pause() { paused_ = true; }
  /// Frames beyond this end the connection (kDataLoss). kMaxHelloBytes until set; any thread.
  void set_max_frame_bytes(std::size_t bytes) { max_frame_bytes_ = bytes; }
  /// Ends the connection with kDeadlineExceeded and `what` at `deadline`, unless called again
  /// before. max() means never.
  void set_deadline(Deadline deadline, std::string_view what);

  /// Queues one frame. kUnavailable after the end or refuse_sends(), kResourceExhausted when full.
  Result<void> send(std::string_view payload);
  /// Makes later send() calls fail. Any thread.
  void refuse_sends();

  /// Delivers nothing more, sends what is queued, waits for the other side's end of the connection
  /// (a second in all), then ends with `reason`.
  void close_gently(Error reason);
  /// Ends now.
  void end(Error reason);

 private:
  void read();
  void deliver();
  void pump();
  void shutdown_if_sent();
  Error lost(const boost::system::error_code& error) const;

  boost::asio::io_context& io_;
  boost::asio::ip::tcp::socket socket_;
  boost::asio::steady_timer timer_;
  std::string remote_address_;
  Events events_;
  std::atomic<std::size_t> max_frame_bytes_;

  std::array<char, 64 << 10> read_buffer_;
  std::string in_;
  bool reading_ = false;
  bool paused_ = true;
  bool delivering_ = false;
  bool closing_ = false;
  bool ended_ = false;
  Error close_reason_;
  Error end_reason_;
  std::vector<std::string> writing_;

  const std::size_t max_queued_bytes_;
  std::mutex mutex_;
  // All below under mutex_.
  std::vector<std::string> queue_;
  std::size_t queued_bytes_ = 0;  ///< in queue_ and writing_
  bool pump_posted_ = false;
  bool refusing_ = false;
};

}  // namespace moiety::proto
