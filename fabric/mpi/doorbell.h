#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/result.h"

namespace moiety::fabric::mpi {

/// Wakes sleeping ranks of the same host, and tells when one of them ends: Unix stream sockets in
/// the abstract namespace, named after the world and the rank. A line carries first the number of
/// the connection that it belongs to (8 bytes, from the side that dialled), then one byte per ring
/// in both directions. Processes of other users are hung up on.
///
/// Confined to one thread, except interrupt().
class Doorbell {
 public:
  using Line = std::uint64_t;
  static constexpr Line kNoLine = 0;

  struct News {
    Line line = kNoLine;
    std::uint64_t connection = 0;
    bool ended = false;  ///< else: the other side dialled and named its connection
  };

  /// `listen_as`: the rank whose socket this is, or -1. kIo: no descriptors. A name that is taken,
  /// or a world without a name, is no error: others then cannot ring, and poll() sleeps in short
  /// pieces.
  static Result<std::unique_ptr<Doorbell>> create(const std::string& world, int listen_as);
  ~Doorbell();
  Doorbell(const Doorbell&) = delete;
  Doorbell& operator=(const Doorbell&) = delete;

  /// kNoLine when nobody listens as that rank on this host. Never blocks.
  Line dial(int rank, std::uint64_t connection);
  void ring(Line line);
  void hang_up(Line line);

  /// Sleeps until somebody rings, dials or ends, interrupt(), or the time is over; takes what there
  /// is.
  std::vector<News> poll(std::chrono::nanoseconds limit);
  /// Ends a poll(), or the next one. Any thread.
  void interrupt();

 private:
  struct Socket {
    int descriptor = -1;
    std::uint64_t connection = 0;
    std::size_t named_bytes = 0;  ///< of `connection`, that have arrived
  };

  Doorbell(std::string world, int epoll_fd, int wake_fd)
      : world_(std::move(world)), epoll_fd_(epoll_fd), wake_fd_(wake_fd) {}
  void listen(int rank);
  Line add(int descriptor, std::uint64_t connection, std::size_t named_bytes);
  void accept_all();
  void take(Line line, std::vector<News>& news);

  const std::string world_;
  const int epoll_fd_;
  const int wake_fd_;  ///< eventfd
  int listen_fd_ = -1;
  Line next_line_ = 1;
  std::map<Line, Socket> sockets_;
};

}  // namespace moiety::fabric::mpi
