#include "fabric/mpi/doorbell.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "common/log.h"

namespace moiety::fabric::mpi {
namespace {

// Values of epoll_event::data that are not lines; lines count up from 1.
constexpr std::uint64_t kWake = ~std::uint64_t{0};
constexpr std::uint64_t kListen = kWake - 1;
constexpr int kBacklog = 256;

struct Name {
  sockaddr_un address = {};
  socklen_t length = 0;
};

Name name_of(const std::string& world, int rank) {
  Name name;
  name.address.sun_family = AF_UNIX;
  const std::string text = fmt::format("moiety-mpi/{}/{}", world, rank);
  const std::size_t size = std::min(text.size(), sizeof name.address.sun_path - 1);
  // A leading zero byte: the abstract namespace, which leaves no file behind.
  std::memcpy(name.address.sun_path + 1, text.data() + (text.size() - size), size);
  name.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + size);
  return name;
}

bool is_our_user(int descriptor) {
  ucred peer = {};
  socklen_t length = sizeof peer;
  return getsockopt(descriptor, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 &&
         peer.uid == geteuid();
}

void watch(int epoll_fd, int descriptor, std::uint64_t value) {
  epoll_event event = {};
  event.events = EPOLLIN | EPOLLRDHUP;
  event.data.u64 = value;
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, descriptor, &event);
}

}  // namespace

Result<std::unique_ptr<Doorbell>> Doorbell::create(const std::string& world, int listen_as) {
  const int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  const int wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (epoll_fd < 0 || wake_fd < 0) {
    const int why = errno;
    if (epoll_fd >= 0) close(epoll_fd);
    if (wake_fd >= 0) close(wake_fd);
    return fail(ErrorCode::kIo, fmt::format("doorbell: {}", std::strerror(why)));
  }
  std::unique_ptr<Doorbell> bell(new Doorbell(world, epoll_fd, wake_fd));
  watch(epoll_fd, wake_fd, kWake);
  if (!world.empty() && listen_as >= 0) bell->listen(listen_as);
  return bell;
}

Doorbell::~Doorbell() {
  for (const auto& [line, socket] : sockets_) close(socket.descriptor);
  if (listen_fd_ >= 0) close(listen_fd_);
  close(wake_fd_);
  close(epoll_fd_);
}

void Doorbell::listen(int rank) {
  const int descriptor = ::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (descriptor < 0) return;
  const Name name = name_of(world_, rank);
  if (bind(descriptor, reinterpret_cast<const sockaddr*>(&name.address), name.length) != 0 ||
      ::listen(descriptor, kBacklog) != 0) {
    log_warning("MPI rank {} has no doorbell: {}; it is looked for at intervals", rank,
                std::strerror(errno));
    close(descriptor);
    return;
  }
  listen_fd_ = descriptor;
  watch(epoll_fd_, descriptor, kListen);
}

Doorbell::Line Doorbell::add(int descriptor, std::uint64_t connection, std::size_t named_bytes) {
  const Line line = next_line_++;
  sockets_[line] = {descriptor, connection, named_bytes};
  watch(epoll_fd_, descriptor, line);
  return line;
}

Doorbell::Line Doorbell::dial(int rank, std::uint64_t connection) {
  if (world_.empty()) return kNoLine;
  const int descriptor = ::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (descriptor < 0) return kNoLine;
  const Name name = name_of(world_, rank);
  if (connect(descriptor, reinterpret_cast<const sockaddr*>(&name.address), name.length) != 0 ||
      !is_our_user(descriptor) ||
      ::send(descriptor, &connection, sizeof connection, MSG_NOSIGNAL) != sizeof connection) {
    close(descriptor);
    return kNoLine;
  }
  return add(descriptor, connection, sizeof connection);
}

void Doorbell::ring(Line line) {
  const auto it = sockets_.find(line);
  if (it == sockets_.end()) return;
  const char byte = 0;
  // A full buffer has rung already; an ended line is news of the next poll().
  [[maybe_unused]] const auto sent =
      ::send(it->second.descriptor, &byte, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void Doorbell::hang_up(Line line) {
  const auto it = sockets_.find(line);
  if (it == sockets_.end()) return;
  close(it->second.descriptor);
  sockets_.erase(it);
}

void Doorbell::accept_all() {
  for (;;) {
    const int descriptor = accept4(listen_fd_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (descriptor < 0) return;
    if (is_our_user(descriptor)) {
      add(descriptor, 0, 0);
    } else {
      close(descriptor);
    }
  }
}

void Doorbell::take(Line line, std::vector<News>& news) {
  const auto it = sockets_.find(line);
  if (it == sockets_.end()) return;
  Socket& socket = it->second;
  std::array<char, 512> bytes;
  for (;;) {
    const ssize_t size = recv(socket.descriptor, bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (size <= 0) {
      if (socket.named_bytes == sizeof socket.connection)
        news.push_back({line, socket.connection, true});
      hang_up(line);
      return;
    }
    if (socket.named_bytes < sizeof socket.connection) {
      const std::size_t part =
          std::min(static_cast<std::size_t>(size), sizeof socket.connection - socket.named_bytes);
      std::memcpy(reinterpret_cast<char*>(&socket.connection) + socket.named_bytes, bytes.data(),
                  part);
      socket.named_bytes += part;
      if (socket.named_bytes == sizeof socket.connection)
        news.push_back({line, socket.connection, false});
    }
    if (static_cast<std::size_t>(size) < bytes.size()) return;
  }
}

std::vector<Doorbell::News> Doorbell::poll(std::chrono::nanoseconds limit) {
  using namespace std::chrono_literals;
  if (limit > 0ns) {
    pollfd descriptor = {epoll_fd_, POLLIN, 0};
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(limit);
    const timespec timeout = {seconds.count(), (limit - seconds).count()};
    if (ppoll(&descriptor, 1, &timeout, nullptr) <= 0) return {};
  }
  std::vector<News> news;
  std::array<epoll_event, 64> events;
  const int ready = epoll_wait(epoll_fd_, events.data(), static_cast<int>(events.size()), 0);
  for (int i = 0; i < ready; ++i) {
    const std::uint64_t value = events[static_cast<std::size_t>(i)].data.u64;
    if (value == kWake) {
      std::uint64_t rings = 0;
      [[maybe_unused]] const auto drained = read(wake_fd_, &rings, sizeof rings);
    } else if (value == kListen) {
      accept_all();
    } else {
      take(value, news);
    }
  }
  return news;
}

void Doorbell::interrupt() {
  const std::uint64_t ring = 1;
  [[maybe_unused]] const auto written = write(wake_fd_, &ring, sizeof ring);
}

}  // namespace moiety::fabric::mpi
