#include <fmt/format.h>

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "common/check.h"
#include "common/log.h"
#include "proto/channel.h"
#include "proto/convert.h"
#include "proto/peer.h"

namespace moiety::proto {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using tcp = asio::ip::tcp;

struct Client {
  std::shared_ptr<Peer> peer;
  std::atomic<bool> welcomed{false};  ///< we sent Welcome: it may say more than Hello
  bool greeted = false;               ///< on_hello was called; server thread only
};

class ChannelServerImpl final : public ChannelServer {
 public:
  explicit ChannelServerImpl(const ChannelServerOptions& options) : options_(options) {}

  ~ChannelServerImpl() override {
    if (!thread_.joinable()) return;
    MOIETY_CHECK(thread_.get_id() != std::this_thread::get_id(),
                 "a callback must not destroy its server");
    asio::post(io_, [this] {
      stopping_ = true;
      error_code ignored;
      acceptor_.close(ignored);
      retry_.cancel();
      for (const auto& client : clients()) {
        client->peer->close_gently(fail(ErrorCode::kCancelled, "the server stops"));
      }
    });
    work_.reset();
    thread_.join();
  }

  Result<void> open() {
    const auto refuse = [&](const error_code& error) {
      return fail(ErrorCode::kUnavailable,
                  fmt::format("cannot listen on {}:{}: {}; choose another port", options_.host,
                              options_.port, error.message()));
    };
    error_code error;
    tcp::resolver resolver(io_);
    const auto found = resolver.resolve(options_.host, std::to_string(options_.port),
                                        tcp::resolver::passive, error);
    if (error) {
      return fail(ErrorCode::kInvalidArgument,
                  fmt::format("cannot listen on '{}': {}; give an address of this machine",
                              options_.host, error.message()));
    }
    const tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (error) return refuse(error);
    port_ = acceptor_.local_endpoint(error).port();
    if (error) return refuse(error);
    return {};
  }

  std::uint16_t port() const override { return port_; }

  void start(ChannelServerCallbacks callbacks) override {
    MOIETY_CHECK(!thread_.joinable(), "start() is called once");
    callbacks_ = std::move(callbacks);
    accept();
    thread_ = std::thread([this] { io_.run(); });
  }

  Result<void> send(ConnectionId connection, const ControlMessage& message) override {
    const std::shared_ptr<Client> client = find(connection);
    if (!client) {
      return fail(ErrorCode::kUnavailable,
                  fmt::format("control connection {} is closed", connection.value));
    }
    MOIETY_ASSIGN(const std::string payload, encode(message));
    if (std::holds_alternative<Welcome>(message)) {
      client->welcomed = true;
      client->peer->set_max_frame_bytes(kMaxMessageBytes);
    }
    return client->peer->send(payload);
  }

  void close(ConnectionId connection) override {
    const std::shared_ptr<Client> client = find(connection);
    if (!client) return;
    client->peer->refuse_sends();
    asio::post(io_, [peer = client->peer] {
      peer->close_gently(fail(ErrorCode::kCancelled, "closed by this process"));
    });
  }

 private:
  std::shared_ptr<Client> find(ConnectionId connection) {
    std::lock_guard lock(mutex_);
    const auto it = clients_.find(connection);
    return it == clients_.end() ? nullptr : it->second;
  }

  std::vector<std::shared_ptr<Client>> clients() {
    std::lock_guard lock(mutex_);
    std::vector<std::shared_ptr<Client>> all;
    for (const auto& [id, client] : clients_) all.push_back(client);
    return all;
  }

  void accept() {
    acceptor_.async_accept([this](error_code error, tcp::socket socket) {
      if (!acceptor_.is_open()) return;
      if (error) {
        log_warning("control channel: cannot accept a connection: {}", error.message());
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
    const auto client = std::make_shared<Client>();
    client->peer = std::make_shared<Peer>(io_, std::move(socket), options_.max_queued_bytes);
    const ConnectionId id{++last_id_};
    {
      std::lock_guard lock(mutex_);
      if (clients_.size() >= options_.max_connections) {
        log_warning("control channel: refusing {}: {} connections are open",
                    client->peer->remote_address(), clients_.size());
        return;
      }
      clients_.emplace(id, client);
    }
    client->peer->set_deadline(Clock::now() + options_.hello_timeout, "said no Hello in time");
    // The map keeps `client` until on_end.
    client->peer->resume(
        {.on_frame = [this, id, &client = *client](
                         std::string_view payload) { receive(id, client, payload); },
         .on_end = [this, id, client](Error reason) { ended(id, *client, std::move(reason)); }});
  }

  void receive(ConnectionId id, Client& client, std::string_view payload) {
    Peer& peer = *client.peer;
    Result<ControlMessage> message = decode(payload);
    if (!message) return peer.end(with_context(peer.remote_address(), message.error()));
    Hello* hello = std::get_if<Hello>(&*message);
    if (client.greeted ? hello != nullptr || !client.welcomed : hello == nullptr) {
      return peer.end(
          fail(ErrorCode::kDataLoss,
               fmt::format("{} sent a message that this state of the conversation does not allow",
                           peer.remote_address())));
    }
    if (client.greeted) return callbacks_.on_message(id, std::move(*message));
    if (hello->protocol_version != kProtocolVersion) {
      const Error error = fail(
          ErrorCode::kFailedPrecondition,
          fmt::format("protocol version {} is not {}; run the same version of Moiety everywhere",
                      hello->protocol_version, kProtocolVersion));
      log_warning("control channel: refusing {}: {}", peer.remote_address(), error.message);
      if (const Result<void> sent = send(id, Refuse{error}); !sent) return peer.end(sent.error());
      return peer.close_gently(error);
    }
    peer.set_deadline(Deadline::max(), "");
    client.greeted = true;
    callbacks_.on_hello(id, std::move(*hello), peer.remote_address());
  }

  void ended(ConnectionId id, const Client& client, Error reason) {
    {
      std::lock_guard lock(mutex_);
      clients_.erase(id);
    }
    if (reason.code == ErrorCode::kDataLoss) {
      log_error("control channel: {}; closed the connection", reason.message);
    }
    if (client.greeted && !stopping_) callbacks_.on_closed(id, std::move(reason));
  }

  const ChannelServerOptions options_;
  ChannelServerCallbacks callbacks_;
  asio::io_context io_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_{io_.get_executor()};
  tcp::acceptor acceptor_{io_};
  asio::steady_timer retry_{io_};
  std::uint16_t port_ = 0;
  std::uint64_t last_id_ = 0;  ///< server thread only
  bool stopping_ = false;      ///< server thread only
  std::mutex mutex_;
  std::map<ConnectionId, std::shared_ptr<Client>> clients_;  ///< under mutex_
  std::thread thread_;
};

}  // namespace

Result<std::unique_ptr<ChannelServer>> ChannelServer::listen(const ChannelServerOptions& options) {
  auto server = std::make_unique<ChannelServerImpl>(options);
  MOIETY_TRY(server->open());
  return std::unique_ptr<ChannelServer>(std::move(server));
}

}  // namespace moiety::proto
