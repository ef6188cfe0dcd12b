#include "fabric/ucx/engine.h"

#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "common/log.h"

namespace moiety::fabric::ucx {
namespace {

using namespace std::chrono_literals;

/// A connection that did not say hello by then is closed.
constexpr auto kHelloTimeout = 10s;
/// Progress rounds in a row before wait() looks at what they brought.
constexpr int kProgressRounds = 64;
constexpr int kClosingRounds = 1000;
/// An endpoint without a message yet keeps UCX's descriptor readable. After so many vain wake-ups
/// in a row the descriptor is ignored for kBackOff at a time, so that a silent stranger cannot keep
/// a core busy.
constexpr int kVainWakeups = 32;
constexpr auto kBackOff = 2ms;

}  // namespace

Result<std::unique_ptr<Engine>> Engine::create(const std::string& host) {
  std::string device;
  if (!host.empty()) {
    MOIETY_ASSIGN(const SocketAddress address, parse_host(host, "0"));
    device = interface_of(address);
  }
  MOIETY_ASSIGN(Context context, Context::create(device));
  const int wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (wake_fd < 0) return fail(ErrorCode::kIo, fmt::format("eventfd: {}", std::strerror(errno)));
  std::unique_ptr<Engine> engine(new Engine(std::move(context), wake_fd));
  MOIETY_TRY(engine->set_handlers());
  return engine;
}

Engine::~Engine() {
  for (const ucp_conn_request_h request : requests_) ucp_listener_reject(listener_, request);
  if (listener_ != nullptr) ucp_listener_destroy(listener_);
  for (const auto& [endpoint, connection] : by_endpoint_) {
    connection->broken = true;
    close_endpoint(endpoint);
  }
  by_endpoint_.clear();
  for (int round = 0;
       round < kClosingRounds && (closing_ > 0 || !outgoing_.empty() || !fetches_.empty());
       ++round) {
    ucp_worker_progress(context_.worker());
  }
  ::close(wake_fd_);
}

Result<std::string> Engine::listen(const std::string& host) {
  MOIETY_ASSIGN(const SocketAddress wanted, parse_host(host, "0"));
  if (wanted.is_wildcard()) {
    return fail(
        ErrorCode::kInvalidArgument,
        fmt::format(
            "a port cannot be bound to the wildcard '{}': name the address that routers reach",
            host));
  }
  ucp_listener_params_t params = {};
  params.field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER;
  params.sockaddr.addr = reinterpret_cast<const sockaddr*>(&wanted.storage);
  params.sockaddr.addrlen = wanted.length;
  params.conn_handler.cb = &Engine::on_connection_request;
  params.conn_handler.arg = this;
  if (const auto status = ucp_listener_create(context_.worker(), &params, &listener_);
      status != UCS_OK) {
    listener_ = nullptr;
    return ucx_error(ErrorCode::kIo, fmt::format("cannot listen on '{}'", host), status);
  }
  ucp_listener_attr_t attributes = {};
  attributes.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR;
  if (const auto status = ucp_listener_query(listener_, &attributes); status != UCS_OK) {
    return ucx_error(ErrorCode::kIo, fmt::format("cannot learn the port bound on '{}'", host),
                     status);
  }
  return SocketAddress{attributes.sockaddr, wanted.length}.text();
}

Result<std::shared_ptr<Connection>> Engine::dial(const std::string& address, std::uint64_t peer) {
  MOIETY_ASSIGN(const SocketAddress target, parse_address(address));
  ucp_ep_params_t params = {};
  params.field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR;
  params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER;
  params.sockaddr.addr = reinterpret_cast<const sockaddr*>(&target.storage);
  params.sockaddr.addrlen = target.length;
  MOIETY_ASSIGN(auto connection, open_endpoint(params, peer));
  connection->dialled = true;
  return connection;
}

Result<std::shared_ptr<Connection>> Engine::open_endpoint(ucp_ep_params_t params,
                                                          std::uint64_t peer) {
  params.field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = &Engine::on_endpoint_error;
  params.err_handler.arg = this;
  auto connection = std::make_shared<Connection>();
  connection->peer = peer;
  early_failures_.clear();
  if (const auto status = ucp_ep_create(context_.worker(), &params, &connection->endpoint);
      status != UCS_OK) {
    return ucx_error(ErrorCode::kUnavailable, "UCX endpoint", status);
  }
  by_endpoint_[connection->endpoint] = connection;
  by_peer_[peer] = connection;
  if (std::count(early_failures_.begin(), early_failures_.end(), connection->endpoint) > 0) {
    mark_broken(connection, "the connection failed at once");
  }
  return connection;
}

void Engine::forget(std::uint64_t peer) {
  if (const auto it = by_peer_.find(peer); it != by_peer_.end()) {
    const auto connection = it->second;
    by_peer_.erase(it);
    by_endpoint_.erase(connection->endpoint);  // so that a loss not reaped yet stays silent
    connection->broken = true;
    close_endpoint(connection->endpoint);
  }
  std::erase_if(events_, [&](const Event& event) { return event.peer == peer; });
}

void Engine::close_endpoint(ucp_ep_h endpoint) {
  ucp_request_param_t param = {};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  param.cb.send = &Engine::on_closed;
  param.user_data = this;
  const ucs_status_ptr_t request = ucp_ep_close_nbx(endpoint, &param);
  if (UCS_PTR_IS_PTR(request)) ++closing_;
}

std::shared_ptr<Connection> Engine::find(std::uint64_t peer) const {
  const auto it = by_peer_.find(peer);
  return it == by_peer_.end() || it->second->broken ? nullptr : it->second;
}

void Engine::mark_broken(const std::shared_ptr<Connection>& connection, std::string why) {
  if (std::exchange(connection->broken, true)) return;
  connection->why = std::move(why);
  broken_.push_back(connection);
}

bool Engine::progress() {
  int rounds = 0;
  while (rounds < kProgressRounds && ucp_worker_progress(context_.worker()) != 0) ++rounds;
  accept_requests();
  expire_greetings();
  reap_broken();
  return rounds > 0;
}

void Engine::accept_requests() {
  for (const ucp_conn_request_h request : std::exchange(requests_, {})) {
    ucp_ep_params_t params = {};
    params.field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST;
    params.conn_request = request;
    auto connection = open_endpoint(params, ++lanes_accepted_);
    if (!connection) {
      log_warning("ucx port: cannot accept a connection: {}", connection.error().message);
      continue;
    }
    greetings_.push_back({*connection, Clock::now() + kHelloTimeout});
  }
}

void Engine::expire_greetings() {
  while (!greetings_.empty()) {
    const auto connection = greetings_.front().connection.lock();
    const bool waits = connection != nullptr && !connection->broken &&
                       connection->state != Connection::State::kOpen;
    if (waits && Clock::now() < greetings_.front().expires) return;
    if (waits) mark_broken(connection, "no hello in time");
    greetings_.pop_front();
  }
}

void Engine::reap_broken() {
  for (const auto& connection : std::exchange(broken_, {})) {
    if (by_endpoint_.erase(connection->endpoint) == 0) continue;  // closed meanwhile
    log_debug("ucx connection {} ended: {}", connection->peer, connection->why);
    close_endpoint(connection->endpoint);
    by_peer_.erase(connection->peer);
    const bool open = connection->state == Connection::State::kOpen;
    if (!open && !connection->dialled) continue;
    Event event;
    event.type = Event::Type::kPeerLost;
    event.peer = connection->peer;
    event.error =
        fail(open && connection->dialled ? ErrorCode::kWorkerLost : ErrorCode::kUnavailable,
             connection->why);
    events_.push_back(std::move(event));
  }
}

void Engine::sleep(Deadline until) {
  if (!greetings_.empty()) until = std::min(until, greetings_.front().expires);
  pollfd descriptors[2] = {{wake_fd_, POLLIN, 0}, {context_.event_fd(), POLLIN, 0}};
  nfds_t count = 2;
  if (++empty_wakeups_ > kVainWakeups) {
    count = 1;
    until = std::min(until, Clock::now() + kBackOff);
  } else if (ucp_worker_arm(context_.worker()) != UCS_OK) {
    return;  // something arrived meanwhile
  }
  const auto left = std::clamp<std::chrono::nanoseconds>(until - Clock::now(), 0ns, 1h);
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(left);
  const timespec timeout = {seconds.count(), (left - seconds).count()};
  const int ready = ppoll(descriptors, count, &timeout, nullptr);
  if (count == 1) {
    empty_wakeups_ = kVainWakeups - 1;  // look at the descriptor again, once
  } else if (ready <= 0 || (descriptors[1].revents & POLLIN) == 0) {
    empty_wakeups_ = 0;  // the deadline or interrupt() ended the sleep, not UCX
  }
  if (ready > 0 && (descriptors[0].revents & POLLIN) != 0) {
    std::uint64_t rings = 0;
    [[maybe_unused]] const auto drained = read(wake_fd_, &rings, sizeof rings);
  }
}

Event Engine::wait(Deadline deadline, const std::function<void()>& each_round) {
  const auto began = Clock::now();
  const auto spin = usual_wait_.spin();
  auto spin_until = began + spin;
  Event event;
  for (;;) {
    const bool moved = progress();
    if (moved) empty_wakeups_ = 0;
    if (each_round) each_round();
    if (interrupted_.load() && interrupted_.exchange(false)) {
      event.type = Event::Type::kInterrupted;
      return event;
    }
    if (!events_.empty()) {
      event = std::move(events_.front());
      events_.pop_front();
      if (event.type == Event::Type::kMessage) bytes_received_ += event.payload.size();
      // Not of a look at what is there already.
      if (deadline > began) usual_wait_.add(Clock::now() - began);
      return event;
    }
    const auto now = Clock::now();
    if (now >= deadline) return event;
    if (moved) {
      spin_until = now + spin;
    } else if (now < spin_until) {
      sched_yield();
    } else {
      sleep(deadline);
    }
  }
}

void Engine::interrupt() {
  interrupted_.store(true);
  const std::uint64_t ring = 1;
  [[maybe_unused]] const auto written = write(wake_fd_, &ring, sizeof ring);
}

}  // namespace moiety::fabric::ucx
