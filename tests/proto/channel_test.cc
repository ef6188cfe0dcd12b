#include "proto/channel.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <deque>
#include <future>
#include <mutex>
#include <optional>
#include <thread>

#include "common/file.h"
#include "common/secret.h"
#include "proto/convert.h"

namespace moiety::proto {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using testing::StartsWith;

constexpr auto kPatience = 10s;

/// Hands values from the channels' threads to the test.
template <class T>
class Inbox {
 public:
  void put(T value) {
    std::lock_guard lock(mutex_);
    values_.push_back(std::move(value));
    changed_.notify_all();
  }
  std::optional<T> take() {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, kPatience, [&] { return !values_.empty(); })) return std::nullopt;
    T value = std::move(values_.front());
    values_.pop_front();
    return value;
  }
  std::size_t size() {
    std::lock_guard lock(mutex_);
    return values_.size();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<T> values_;
};

/// A server that welcomes whoever says the token "secret".
struct TestServer {
  using Message = std::pair<ConnectionId, ControlMessage>;
  using End = std::pair<ConnectionId, Error>;

  explicit TestServer(ChannelServerOptions options = {}) {
    auto listening = ChannelServer::listen(options);
    EXPECT_TRUE(listening) << (listening ? "" : listening.error().message);
    server = std::move(*listening);
    server->start({.on_hello =
                       [this](ConnectionId id, Hello hello, std::string) {
                         if (!secrets_equal(hello.token, "secret")) {
                           EXPECT_TRUE(server->send(
                               id, Refuse{fail(ErrorCode::kInvalidArgument, "wrong token")}));
                           server->close(id);
                           return;
                         }
                         EXPECT_TRUE(server->send(id, Welcome{"c1", hello.id.value_or(7), 5s, 1s}));
                         hellos.put({id, std::move(hello)});
                       },
                   .on_message =
                       [this](ConnectionId id, ControlMessage m) {
                         messages.put({id, std::move(m)});
                       },
                   .on_closed =
                       [this](ConnectionId id, Error e) {
                         ends.put({id, std::move(e)});
                       }});
  }

  std::string address() const { return fmt::format("127.0.0.1:{}", server->port()); }

  Inbox<std::pair<ConnectionId, Hello>> hellos;
  Inbox<Message> messages;
  Inbox<End> ends;
  std::unique_ptr<ChannelServer> server;  // last: its thread uses the inboxes
};

struct TestClient {
  explicit TestClient(const std::string& address, const ChannelOptions& options = {}) {
    Hello hello;
    hello.token = "secret";
    auto connected = Channel::connect(address, hello, options);
    EXPECT_TRUE(connected) << (connected ? "" : connected.error().message);
    channel = std::move(*connected);
    channel->start({.on_message = [this](ControlMessage m) { messages.put(std::move(m)); },
                    .on_closed = [this](Error e) { ends.put(std::move(e)); }});
  }

  Inbox<ControlMessage> messages;
  Inbox<Error> ends;
  std::unique_ptr<Channel> channel;
};

/// A plain socket, for what a well-behaved peer never does.
class RawSocket {
 public:
  explicit RawSocket(std::uint16_t port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  void send(std::string_view bytes) {
    EXPECT_EQ(::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  /// Everything the peer sends until it closes.
  std::string read_all() {
    std::string received;
    for (;;) {
      pollfd poll_fd{fd_.get(), POLLIN, 0};
      if (::poll(&poll_fd, 1, 10'000) <= 0) {
        ADD_FAILURE() << "the peer did not close";
        return received;
      }
      char buffer[4096];
      const ssize_t count = ::recv(fd_.get(), buffer, sizeof(buffer), 0);
      if (count <= 0) return received;
      received.append(buffer, static_cast<std::size_t>(count));
    }
  }
  void close() { fd_ = Fd(); }

 private:
  Fd fd_;
};

std::string frame(std::string_view payload) {
  std::string out;
  for (int i = 0; i < 4; ++i) out += static_cast<char>((payload.size() >> (8 * i)) & 0xff);
  return out.append(payload);
}

std::string frame(const ControlMessage& message) {
  return frame(std::string_view(*encode(message)));
}

Hello good_hello() {
  Hello hello;
  hello.token = "secret";
  return hello;
}

TEST(Channel, SaysHelloAndIsWelcomed) {
  TestServer server;
  Hello hello;
  hello.role = Role::kRouter;
  hello.id = 3;
  hello.incarnation = 99;
  hello.token = "secret";
  hello.pid = 42;
  hello.build = "0.1.0";
  hello.lane_address = std::string("\x00\xff lane", 7);
  hello.http_address = "127.0.0.1:8000";
  hello.fingerprint = "abc";
  const auto channel = Channel::connect(server.address(), hello);
  ASSERT_TRUE(channel) << channel.error().message;
  EXPECT_EQ((*channel)->welcome(), (Welcome{"c1", 3, 5s, 1s}));
  const auto heard = server.hellos.take();
  ASSERT_TRUE(heard);
  EXPECT_EQ(heard->second, hello);
}

TEST(Channel, CarriesAThousandMessagesInOrderBothWays) {
  constexpr std::uint64_t kMessages = 1000;
  TestServer server;
  TestClient client(server.address());
  const auto connection = server.hellos.take();
  ASSERT_TRUE(connection);
  std::thread down([&] {
    for (std::uint64_t i = 0; i < kMessages; ++i) {
      // Sizes from a few bytes to more than one read.
      std::vector<ExpertId> experts;
      for (std::int32_t e = 0; e < static_cast<std::int32_t>((i * 37) % 10'000); e += 1 + i % 5) {
        experts.push_back({0, e});
      }
      ASSERT_TRUE(server.server->send(connection->first, LoadExperts{{i}, std::move(experts)}));
    }
  });
  for (std::uint64_t i = 0; i < kMessages; ++i) {
    ASSERT_TRUE(client.channel->send(WorkerHeartbeat{{.rows_processed = i}}));
  }
  for (std::uint64_t i = 0; i < kMessages; ++i) {
    const auto up = server.messages.take();
    ASSERT_TRUE(up);
    EXPECT_EQ(up->first, connection->first);
    ASSERT_EQ(std::get<WorkerHeartbeat>(up->second).stats.rows_processed, i);
    const auto message = client.messages.take();
    ASSERT_TRUE(message);
    ASSERT_EQ(std::get<LoadExperts>(*message).epoch.value, i);
  }
  down.join();
}

TEST(Channel, DeliversWhatArrivedBeforeStart) {
  TestServer server;
  const auto channel = Channel::connect(server.address(), good_hello());
  ASSERT_TRUE(channel) << channel.error().message;
  const auto connection = server.hellos.take();
  ASSERT_TRUE(connection);
  ASSERT_TRUE(server.server->send(connection->first, Shutdown{"now"}));
  server.server->close(connection->first);
  Inbox<ControlMessage> messages;
  Inbox<Error> ends;
  (*channel)->start({.on_message = [&](ControlMessage m) { messages.put(std::move(m)); },
                     .on_closed = [&](Error e) { ends.put(std::move(e)); }});
  const auto message = messages.take();
  ASSERT_TRUE(message);
  EXPECT_EQ(std::get<Shutdown>(*message).reason, "now");
  EXPECT_TRUE(ends.take());
}

TEST(Channel, ReportsARefusal) {
  TestServer server;
  Hello hello = good_hello();
  hello.token = "guess";
  const auto channel = Channel::connect(server.address(), hello);
  ASSERT_FALSE(channel);
  EXPECT_EQ(channel.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(channel.error().message, server.address() + " refused this process: wrong token");
  const auto end = server.ends.take();
  ASSERT_TRUE(end);
  EXPECT_EQ(end->second.code, ErrorCode::kCancelled);
}

TEST(Channel, RefusesAnotherProtocolVersion) {
  TestServer server;
  Hello hello = good_hello();
  hello.protocol_version = kProtocolVersion + 1;
  const auto channel = Channel::connect(server.address(), hello);
  ASSERT_FALSE(channel);
  EXPECT_EQ(channel.error().code, ErrorCode::kFailedPrecondition);
  EXPECT_THAT(channel.error().message, HasSubstr("protocol version 3 is not 2"));
  EXPECT_EQ(server.hellos.size(), 0u);
}

TEST(Channel, NamesAnAddressWhereNobodyListens) {
  std::string address;
  {
    TestServer server;
    address = server.address();
  }
  const auto refused = Channel::connect(address, good_hello());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(refused.error().message, "cannot connect to " + address + ": Connection refused");
  for (const char* bad : {"", "localhost", ":80", "host:"}) {
    const auto wrong = Channel::connect(bad, good_hello());
    ASSERT_FALSE(wrong);
    EXPECT_EQ(wrong.error().code, ErrorCode::kInvalidArgument) << bad;
  }
}

TEST(Channel, WithoutAThreadItIsUnavailableForNow) {
  TestServer server;
  pthread_attr_t before, impossible;
  ASSERT_EQ(pthread_getattr_default_np(&before), 0);
  ASSERT_EQ(pthread_getattr_default_np(&impossible), 0);
  // A stack as large as the address space: whoever starts a thread hears what a full machine says.
  ASSERT_EQ(pthread_attr_setstacksize(&impossible, std::size_t{1} << 47), 0);
  ASSERT_EQ(pthread_setattr_default_np(&impossible), 0);
  const auto refused = Channel::connect(server.address(), good_hello());
  ASSERT_EQ(pthread_setattr_default_np(&before), 0);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(refused.error().message, HasSubstr("thread"));
  const TestClient again(server.address());
}

TEST(Channel, GivesUpOnASilentServer) {
  const auto listening = ChannelServer::listen({});  // never started: nobody accepts
  ASSERT_TRUE(listening);
  const std::string address = fmt::format("127.0.0.1:{}", (*listening)->port());
  const auto channel = Channel::connect(address, good_hello(), {.connect_timeout = 50ms});
  ASSERT_FALSE(channel);
  EXPECT_EQ(channel.error().code, ErrorCode::kDeadlineExceeded);
  EXPECT_EQ(channel.error().message, "no answer from " + address + " within 50 ms");
}

TEST(ChannelServer, NamesATakenAddress) {
  TestServer server;
  ChannelServerOptions options;
  options.port = server.server->port();
  const auto second = ChannelServer::listen(options);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(second.error().message, StartsWith("cannot listen on " + server.address()));
}

TEST(Channel, BothSidesSeeTheOtherClose) {
  TestServer server;
  TestClient first(server.address());
  TestClient second(server.address());
  const auto id = server.hellos.take();
  ASSERT_TRUE(id);
  // What is queued before a close still arrives.
  ASSERT_TRUE(first.channel->send(Shutdown{"last words"}));
  first.channel->close();
  const auto words = server.messages.take();
  ASSERT_TRUE(words);
  EXPECT_EQ(words->first, id->first);
  const auto end = server.ends.take();
  ASSERT_TRUE(end);
  EXPECT_EQ(end->first, id->first);
  EXPECT_EQ(end->second.code, ErrorCode::kUnavailable);
  const auto late = server.server->send(id->first, Shutdown{});
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ErrorCode::kUnavailable);
  const auto own = first.channel->send(Shutdown{});
  ASSERT_FALSE(own);
  EXPECT_EQ(own.error().code, ErrorCode::kUnavailable);

  server.server.reset();
  const auto lost = second.ends.take();
  ASSERT_TRUE(lost);
  EXPECT_EQ(lost->code, ErrorCode::kUnavailable);
  first.channel.reset();
  EXPECT_EQ(first.ends.size(), 0u);  // its own close() is no news
}

TEST(ChannelServer, SeesAKilledProcess) {
  TestServer server;
  const std::uint16_t port = server.server->port();
  const std::string hello = frame(good_hello());
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {  // only async-signal-safe calls: the parent has threads
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) ::_exit(1);
    if (::send(fd, hello.data(), hello.size(), 0) < 0) ::_exit(1);
    for (;;) ::pause();
  }
  const auto id = server.hellos.take();
  EXPECT_TRUE(id);
  EXPECT_EQ(::kill(child, SIGKILL), 0);
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  const auto end = server.ends.take();
  ASSERT_TRUE(end);
  EXPECT_EQ(end->first, id->first);
  EXPECT_EQ(end->second.code, ErrorCode::kUnavailable);
}

TEST(ChannelServer, ClosesHostileConnectionsAndServesOn) {
  TestServer server;
  const std::string whole = frame(good_hello());
  const std::string_view hostile[] = {
      std::string_view("\xff\xff\xff\xff"),     // 4 GiB announced
      std::string_view("\x01\x00\x04\x00", 4),  // one byte more than kMaxHelloBytes
      std::string_view("\x07\x00\x00\x00garbage", 11),
      std::string_view("\x00\x00\x00\x00", 4),  // an empty message
      std::string_view("GET / HTTP/1.1\r\n\r\n"),
  };
  for (std::string_view bytes : hostile) {
    RawSocket socket(server.server->port());
    socket.send(bytes);
    EXPECT_EQ(socket.read_all(), "");
  }
  {
    RawSocket truncated(server.server->port());
    truncated.send(std::string_view(whole).substr(0, whole.size() - 1));
    truncated.close();
    RawSocket uninvited(server.server->port());
    uninvited.send(frame(ControlMessage(Shutdown{"not a hello"})));
    EXPECT_EQ(uninvited.read_all(), "");
  }
  EXPECT_EQ(server.hellos.size(), 0u);
  EXPECT_EQ(server.ends.size(), 0u);
  TestClient client(server.address());
  EXPECT_TRUE(server.hellos.take());
}

TEST(ChannelServer, ClosesAWelcomedClientThatTurnsHostile) {
  TestServer server;
  const std::string hello = frame(good_hello());
  const std::string huge("\x01\x00\x00\x04", 4);  // kMaxMessageBytes + 1
  for (const std::string& then : {huge, hello, frame("garbage")}) {
    RawSocket socket(server.server->port());
    socket.send(hello);
    const auto id = server.hellos.take();  // Welcome was sent before
    ASSERT_TRUE(id);
    socket.send(then);
    const auto end = server.ends.take();
    ASSERT_TRUE(end);
    EXPECT_EQ(end->first, id->first);
    EXPECT_EQ(end->second.code, ErrorCode::kDataLoss) << end->second.message;
    socket.read_all();
  }
  EXPECT_EQ(server.messages.size(), 0u);
}

TEST(ChannelServer, MessagesBeforeWelcomeAreNotDelivered) {
  auto server = ChannelServer::listen({});
  ASSERT_TRUE(server);
  Inbox<Error> ends;
  std::atomic<int> messages{0};
  (*server)->start({.on_hello = [](ConnectionId, Hello, std::string) {},
                    .on_message = [&](ConnectionId, ControlMessage) { ++messages; },
                    .on_closed = [&](ConnectionId, Error e) { ends.put(std::move(e)); }});
  RawSocket socket((*server)->port());
  socket.send(frame(good_hello()) + frame(ControlMessage(WorkerHeartbeat{})));
  const auto end = ends.take();
  ASSERT_TRUE(end);
  EXPECT_EQ(end->code, ErrorCode::kDataLoss);
  EXPECT_EQ(messages, 0);
}

TEST(ChannelServer, ClosesAClientThatSaysNothing) {
  ChannelServerOptions options;
  options.hello_timeout = 50ms;
  TestServer server(options);
  RawSocket socket(server.server->port());
  EXPECT_EQ(socket.read_all(), "");
}

TEST(Channel, ClosesWhenTheServerSendsGarbage) {
  // A server of our own making: welcomes, then breaks the protocol.
  const Fd listener(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(::listen(listener.get(), 1), 0);
  ASSERT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  auto accepted = std::async(std::launch::async, [&] {
    Fd fd(::accept(listener.get(), nullptr, nullptr));
    const std::string bytes = frame(ControlMessage(Welcome{})) + frame("garbage");
    EXPECT_GT(::send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), 0);
    return fd;
  });
  TestClient client(fmt::format("127.0.0.1:{}", ntohs(address.sin_port)));
  const Fd held = accepted.get();
  const auto end = client.ends.take();
  ASSERT_TRUE(end);
  EXPECT_EQ(end->code, ErrorCode::kDataLoss);
}

TEST(Channel, BoundsWhatWaitsForASlowPeer) {
  std::promise<void> unblock;
  const std::shared_future<void> blocker = unblock.get_future().share();
  auto slow = ChannelServer::listen({});
  ASSERT_TRUE(slow);
  (*slow)->start({.on_hello = [&](ConnectionId id, Hello,
                                  std::string) { EXPECT_TRUE((*slow)->send(id, Welcome{})); },
                  .on_message = [blocker](ConnectionId, ControlMessage) { blocker.wait(); },
                  .on_closed = [](ConnectionId, Error) {}});
  TestClient fast(fmt::format("127.0.0.1:{}", (*slow)->port()), {.max_queued_bytes = 1u << 20});
  const Shutdown text{std::string(kMaxTextBytes, 'x')};
  Result<void> sent = {};
  for (int i = 0; i < 100'000 && sent; ++i) sent = fast.channel->send(text);
  unblock.set_value();
  ASSERT_FALSE(sent) << "the queue has no bound";
  EXPECT_EQ(sent.error().code, ErrorCode::kResourceExhausted);
}

TEST(Channel, RefusesToSendAnInvalidMessageAndStaysOpen) {
  TestServer server;
  TestClient client(server.address());
  const auto invalid = client.channel->send(LoadExperts{{1}, {{-1, 0}}});
  ASSERT_FALSE(invalid);
  EXPECT_EQ(invalid.error().code, ErrorCode::kInvalidArgument);
  ASSERT_TRUE(client.channel->send(WorkerHeartbeat{}));
  EXPECT_TRUE(server.messages.take());
}

TEST(Tokens, AreEqualOnlyWhenTheyAre) {
  EXPECT_TRUE(secrets_equal("secret", "secret"));
  EXPECT_TRUE(secrets_equal("", ""));
  EXPECT_FALSE(secrets_equal("secreT", "secret"));
  EXPECT_FALSE(secrets_equal("secre", "secret"));
  EXPECT_FALSE(secrets_equal("secretsecret", "secret"));
  EXPECT_FALSE(secrets_equal("", "secret"));
  EXPECT_FALSE(secrets_equal("x", ""));
  EXPECT_FALSE(secrets_equal(std::string_view("\0", 1), ""));
}

}  // namespace
}  // namespace moiety::proto
