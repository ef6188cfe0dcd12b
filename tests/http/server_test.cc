#include "http/server.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <future>
#include <mutex>
#include <thread>
#include <vector>

#include "common/file.h"
#include "common/ids.h"
#include "http/client.h"
#include "http/wire.h"

namespace moiety::http {
namespace {

using namespace std::chrono_literals;
using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

constexpr auto kPatience = 10s;

/// A plain socket, for what a well-behaved client never does.
class RawClient {
 public:
  explicit RawClient(std::uint16_t port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  void send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      ASSERT_GT(sent, 0);
      bytes.remove_prefix(static_cast<std::size_t>(sent));
    }
  }
  /// Everything received until it contains `end`, or the server closes.
  std::string read_until(std::string_view end) {
    const auto deadline = Clock::now() + kPatience;
    std::size_t searched = 0;
    while (received_.find(end, searched) == std::string::npos) {
      searched = received_.size() - std::min(received_.size(), end.size());
      pollfd poll_fd{fd_.get(), POLLIN, 0};
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
      if (left.count() <= 0 || ::poll(&poll_fd, 1, static_cast<int>(left.count())) <= 0) {
        ADD_FAILURE() << "nothing more came; so far: " << received_;
        break;
      }
      char buffer[4096];
      const ssize_t count = ::recv(fd_.get(), buffer, sizeof(buffer), 0);
      if (count <= 0) break;
      received_.append(buffer, static_cast<std::size_t>(count));
    }
    return std::exchange(received_, {});
  }
  /// Everything until the server closes.
  std::string read_all() { return read_until("\x01 never sent \x01"); }
  /// Something to read, or the end, comes within `time`.
  bool readable(std::chrono::milliseconds time) {
    pollfd poll_fd{fd_.get(), POLLIN, 0};
    return ::poll(&poll_fd, 1, static_cast<int>(time.count())) > 0;
  }
  void finish_sending() { ::shutdown(fd_.get(), SHUT_WR); }
  void close() { fd_ = Fd(); }

 private:
  Fd fd_;
  std::string received_;
};

/// Hands a value from one thread to another.
template <class T>
class Slot {
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
    values_.erase(values_.begin());
    return value;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<T> values_;
};

using ResponderSlot = Slot<std::shared_ptr<Responder>>;

Response text(std::string body, int status = 200) {
  Response response;
  response.status = status;
  response.content_type = "text/plain";
  response.body = std::move(body);
  return response;
}

void echo(Request request, std::shared_ptr<Responder> responder) {
  responder->respond(
      text(fmt::format("{} {} {} {}", request.method, request.path, request.query, request.body)));
}

std::unique_ptr<Server> serve(Handler handler, ServerOptions options = {}) {
  if (!options.error_body) {
    options.error_body = [](int status, std::string_view message) {
      return fmt::format(R"({{"status":{},"why":"{}"}})", status, message);
    };
  }
  auto server = Server::start(std::move(options), std::move(handler));
  EXPECT_TRUE(server) << (server ? "" : server.error().message);
  return std::move(*server);
}

std::string url(const Server& server, std::string_view target) {
  return fmt::format("http://127.0.0.1:{}{}", server.port(), target);
}

TEST(HttpServer, AnswersWithTheParsedRequest) {
  const auto server = serve(echo);
  const auto response = request("POST", url(*server, "/a%20b/c?x=%20y"), "hello", kPatience);
  ASSERT_TRUE(response) << response.error().message;
  EXPECT_EQ(response->status, 200);
  EXPECT_EQ(response->content_type, "text/plain");
  EXPECT_EQ(response->body, "POST /a b/c x=%20y hello");
}

TEST(HttpServer, PassesStatusAndHeadersBothWays) {
  const auto server = serve([](Request request, std::shared_ptr<Responder> responder) {
    Response response = text(request.headers["x-mixed"], 429);
    response.headers["Retry-After"] = "3\r\nX-Injected: 1";
    responder->respond(std::move(response));
  });
  RawClient client(server->port());
  client.send("GET / HTTP/1.1\r\nHost: h\r\nX-MIXED: one\r\nx-mixed: two\r\n\r\n");
  const std::string answer = client.read_until("one, two");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 429 Too Many Requests\r\n"));
  EXPECT_THAT(answer, HasSubstr("\r\nRetry-After: 3  X-Injected: 1\r\n"));
}

TEST(HttpServer, KeepsTheConnectionForTheNextRequest) {
  const auto server = serve(echo);
  RawClient client(server->port());
  for (int i = 0; i < 3; ++i) {
    client.send(fmt::format("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", i));
    EXPECT_THAT(client.read_until(fmt::format("GET /{}", i)), StartsWith("HTTP/1.1 200 OK"));
  }
  client.send("GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(client.read_all(), HasSubstr("GET /last"));
}

TEST(HttpServer, AnswersTwoRequestsOfOnePacketInOrder) {
  ResponderSlot slot;
  const auto server = serve([&](Request request, std::shared_ptr<Responder> responder) {
    if (request.path == "/slow") return slot.put(std::move(responder));
    echo(std::move(request), std::move(responder));
  });
  RawClient client(server->port());
  client.send(
      "GET /slow HTTP/1.1\r\nHost: h\r\n\r\nPOST /fast HTTP/1.1\r\nHost: h\r\n"
      "Content-Length: 3\r\n\r\nabcGET /end HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
  const auto slow = slot.take();
  ASSERT_TRUE(slow);
  (*slow)->respond(text("slow"));
  const std::string answer = client.read_all();
  const std::size_t first = answer.find("\r\n\r\nslow");
  const std::size_t second = answer.find("POST /fast  abc");
  const std::size_t third = answer.find("GET /end");
  ASSERT_NE(third, std::string::npos) << answer;
  EXPECT_LT(first, second);
  EXPECT_LT(second, third);
}

TEST(HttpServer, TakesABodyOfTheLimitAndRefusesOneMore) {
  ServerOptions options;
  options.max_body_bytes = 200'000;
  const auto server = serve(
      [](Request request, std::shared_ptr<Responder> responder) {
        responder->respond(text(std::to_string(request.body.size())));
      },
      options);
  const auto fits = request("POST", url(*server, "/"), std::string(200'000, 'x'), kPatience);
  ASSERT_TRUE(fits) << fits.error().message;
  EXPECT_EQ(fits->body, "200000");
  const auto large = request("POST", url(*server, "/"), std::string(200'001, 'x'), kPatience);
  ASSERT_TRUE(large) << large.error().message;
  EXPECT_EQ(large->status, 413);
  EXPECT_EQ(large->body, R"({"status":413,"why":"the body is larger than 200000 bytes"})");

  RawClient chunked(server->port());
  chunked.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n30d41\r\n");
  EXPECT_THAT(chunked.read_all(), StartsWith("HTTP/1.1 413 "));
}

TEST(HttpServer, ReadsChunkedBodies) {
  const auto server = serve(echo);
  RawClient client(server->port());
  client.send(
      "POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: "
      "chunked\r\n\r\n3\r\nabc\r\n2;x=1\r\nde\r\n");
  client.send("0\r\nHost: evil\r\n\r\n");
  EXPECT_THAT(client.read_until("abcde"), HasSubstr("POST /c  abcde"));
}

TEST(HttpServer, RefusesWhatIsNotHttpWithJson) {
  const auto server = serve(echo);
  for (std::string_view bytes :
       {"this is not http\r\n\r\n", "GET / HTTP/1.1\r\nno colon\r\n\r\n", "GET / HTTP/1.1\r\n\r\n",
        "GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n", "GET /%00 HTTP/1.1\r\nHost: h\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"}) {
    RawClient client(server->port());
    client.send(bytes);
    const std::string answer = client.read_all();
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 400 Bad Request\r\n")) << bytes;
    EXPECT_THAT(answer, HasSubstr("\r\n\r\n{\"status\":400,\"why\":\"")) << bytes;
    EXPECT_THAT(answer, HasSubstr("Connection: close")) << bytes;
  }
}

TEST(HttpServer, BoundsHeadersAndTrailers) {
  const auto server = serve(echo);
  RawClient header(server->port());
  header.send("GET / HTTP/1.1\r\nHost: h\r\nX: " + std::string(20'000, 'x') + "\r\n\r\n");
  EXPECT_THAT(header.read_all(), StartsWith("HTTP/1.1 431 "));
  RawClient trailer(server->port());
  trailer.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " +
               std::string(20'000, 'x'));
  EXPECT_THAT(trailer.read_all(), StartsWith("HTTP/1.1 431 "));
}

TEST(HttpServer, TellsAWaitingClientToContinue) {
  const auto server = serve(echo);
  RawClient client(server->port());
  client.send("POST /c HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
  EXPECT_EQ(client.read_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.send("body");
  EXPECT_THAT(client.read_until("body"), StartsWith("HTTP/1.1 200 OK"));
}

TEST(HttpServer, AnswersHeadWithoutABody) {
  const auto server = serve([](Request request, std::shared_ptr<Responder> responder) {
    if (request.path == "/plain") return responder->respond(text("12345"));
    responder->start_stream(200, "text/event-stream", {});
    responder->write("piece");
    responder->end();
  });
  RawClient client(server->port());
  client.send("HEAD /plain HTTP/1.1\r\nHost: h\r\n\r\nHEAD /stream HTTP/1.1\r\nHost: h\r\n\r\n");
  client.send("GET /plain HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
  const std::string answer = client.read_all();
  EXPECT_THAT(answer, HasSubstr("Content-Length: 5\r\n\r\nHTTP/1.1 200 OK"));
  EXPECT_THAT(answer, HasSubstr("Transfer-Encoding: chunked\r\n\r\nHTTP/1.1 200 OK"));
  EXPECT_THAT(answer, EndsWith("\r\n\r\n12345"));
  const auto head = request("HEAD", url(*server, "/plain"), "", kPatience);
  ASSERT_TRUE(head) << head.error().message;
  EXPECT_EQ(head->body, "");
}

TEST(HttpServer, DeliversPiecesAsTheyAreWritten) {
  ResponderSlot slot;
  const auto server = serve([&](Request, std::shared_ptr<Responder> responder) {
    responder->start_stream(200, "text/event-stream", {{"Cache-Control", "no-cache"}});
    slot.put(std::move(responder));
  });
  std::string seen;
  std::shared_ptr<Responder> responder;
  std::thread writer([&] {
    auto taken = slot.take();
    ASSERT_TRUE(taken);
    (*taken)->write("first");
    responder = std::move(*taken);
  });
  // The second piece is written only once the first has arrived.
  const auto response = request_stream("GET", url(*server, "/"), "", kPatience, [&](auto piece) {
    seen += piece;
    if (seen == "first") {
      writer.join();
      responder->write("");
      responder->write(" second");
    } else if (seen == "first second") {
      responder->end();
    }
  });
  ASSERT_TRUE(response) << response.error().message;
  EXPECT_EQ(response->content_type, "text/event-stream");
  EXPECT_EQ(response->headers.at("cache-control"), "no-cache");
  EXPECT_EQ(response->body, "");
  EXPECT_EQ(seen, "first second");
}

TEST(HttpServer, StreamsToAnOldClientUntilTheEndOfTheConnection) {
  const auto server = serve([](Request, std::shared_ptr<Responder> responder) {
    responder->start_stream(200, "text/plain", {});
    responder->write("one ");
    responder->write("two");
    responder->end();
  });
  RawClient client(server->port());
  client.send("GET / HTTP/1.0\r\n\r\n");
  EXPECT_THAT(client.read_all(), EndsWith("\r\n\r\none two"));
}

TEST(HttpServer, SaysWhenTheClientLeavesMidStream) {
  ResponderSlot slot;
  Slot<bool> gone;
  const auto server = serve([&](Request, std::shared_ptr<Responder> responder) {
    responder->on_disconnect([&] { gone.put(true); });
    responder->start_stream(200, "text/event-stream", {});
    responder->write("piece");
    slot.put(std::move(responder));
  });
  RawClient client(server->port());
  client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
  client.read_until("piece");
  const auto responder = slot.take();
  ASSERT_TRUE(responder);
  client.close();
  EXPECT_TRUE(gone.take());
  // Answering now is safe and goes nowhere; a late listener hears at once.
  (*responder)->write("more");
  (*responder)->on_disconnect([&] { gone.put(true); });
  EXPECT_TRUE(gone.take());
  EXPECT_EQ((*responder)->unsent_bytes(), 0u);
  (*responder)->end();
}

TEST(HttpServer, SaysWhenTheClientLeavesBeforeTheAnswer) {
  ResponderSlot slot;
  Slot<bool> gone;
  const auto server = serve([&](Request, std::shared_ptr<Responder> responder) {
    responder->on_disconnect([&] { gone.put(true); });
    slot.put(std::move(responder));
  });
  RawClient client(server->port());
  client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
  const auto responder = slot.take();
  ASSERT_TRUE(responder);
  client.close();
  EXPECT_TRUE(gone.take());
  (*responder)->respond(text("too late"));
}

TEST(HttpServer, DoesNotCallBackAfterACompleteAnswer) {
  std::atomic<int> calls{0};
  ResponderSlot slot;
  const auto server = serve([&](Request, std::shared_ptr<Responder> responder) {
    responder->on_disconnect([&] { ++calls; });
    responder->respond(text("done"));
    slot.put(std::move(responder));
  });
  {
    const auto response = request("GET", url(*server, "/"), "", kPatience);
    ASSERT_TRUE(response) << response.error().message;
  }
  server->stop(kPatience);
  EXPECT_EQ(calls, 0);
}

TEST(HttpServer, MayBeAnsweredFromAnotherThread) {
  ResponderSlot slot;
  const auto server =
      serve([&](Request, std::shared_ptr<Responder> responder) { slot.put(std::move(responder)); });
  std::thread worker([&] {
    for (int i = 0; i < 20; ++i) {
      auto responder = slot.take();
      ASSERT_TRUE(responder);
      (*responder)->respond(text(std::string(100'000, 'a')));
    }
  });
  for (int i = 0; i < 20; ++i) {
    const auto response = request("GET", url(*server, "/"), "", kPatience);
    ASSERT_TRUE(response) << response.error().message;
    EXPECT_EQ(response->body, std::string(100'000, 'a'));
  }
  worker.join();
}

TEST(HttpServer, AForgottenRequestGets500AndAForgottenStreamEndsShort) {
  const auto server = serve([](Request request, std::shared_ptr<Responder> responder) {
    if (request.path == "/throw") throw std::runtime_error("handler bug");
    if (request.path == "/drop") return;
    responder->start_stream(200, "text/plain", {});
    responder->write("half");
  });
  for (const char* path : {"/drop", "/throw"}) {
    const auto dropped = request("GET", url(*server, path), "", kPatience);
    ASSERT_TRUE(dropped) << dropped.error().message;
    EXPECT_EQ(dropped->status, 500);
    EXPECT_THAT(dropped->body, StartsWith("{\"status\":500"));
  }
  std::string seen;
  const auto cut = request_stream("GET", url(*server, "/stream"), "", kPatience,
                                  [&](std::string_view piece) { seen += piece; });
  ASSERT_FALSE(cut);
  EXPECT_EQ(cut.error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(seen, "half");
}

TEST(HttpServer, CountsWhatASlowClientHasNotTaken) {
  constexpr std::size_t kPieceBytes = 64u << 20;  // more than the sockets' buffers hold
  ResponderSlot slot;
  const auto server = serve([&](Request, std::shared_ptr<Responder> responder) {
    responder->start_stream(200, "text/plain", {});
    responder->write(std::string(kPieceBytes, 'x'));
    slot.put(std::move(responder));
  });
  RawClient client(server->port());
  client.send("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
  const auto responder = slot.take();
  ASSERT_TRUE(responder);
  EXPECT_GT((*responder)->unsent_bytes(), kPieceBytes / 2);
  (*responder)->end();
  const std::string answer = client.read_all();
  EXPECT_THAT(answer.substr(answer.size() - 5), "0\r\n\r\n");
  EXPECT_GT(answer.size(), kPieceBytes);
  EXPECT_EQ((*responder)->unsent_bytes(), 0u);
}

TEST(HttpServer, DropsAClientThatStopsReading) {
  ResponderSlot slot;
  Slot<bool> gone;
  ServerOptions options;
  options.idle_timeout = 1s;
  const auto server = serve(
      [&](Request, std::shared_ptr<Responder> responder) {
        responder->on_disconnect([&] { gone.put(true); });
        responder->start_stream(200, "text/plain", {});
        responder->write(std::string(64u << 20, 'x'));
        slot.put(std::move(responder));
      },
      options);
  RawClient client(server->port());
  client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_TRUE(gone.take());
}

TEST(HttpServer, ClosesIdleAndTimesOutSlowSenders) {
  ServerOptions options;
  options.idle_timeout = 1s;
  const auto server = serve(echo, options);
  RawClient silent(server->port());
  RawClient slow(server->port());
  slow.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nhalf");
  EXPECT_EQ(silent.read_all(), "");
  EXPECT_THAT(slow.read_all(), StartsWith("HTTP/1.1 408 "));
}

TEST(HttpServer, ABodyThatComesByteByByteIsCutOff) {
  ServerOptions options;
  options.idle_timeout = 1s;
  const auto server = serve(echo, options);
  RawClient trickling(server->port());
  trickling.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n");
  const auto deadline = Clock::now() + kPatience;
  while (!trickling.readable(100ms) && Clock::now() < deadline) trickling.send("x");
  EXPECT_THAT(trickling.read_all(), StartsWith("HTTP/1.1 408 "));
}

TEST(HttpServer, AnswersAClientThatHasFinishedSending) {
  const auto server = serve(echo);
  RawClient client(server->port());
  client.send("GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n");
  client.finish_sending();
  const std::string answer = client.read_all();
  EXPECT_THAT(answer, HasSubstr("GET /1"));
  EXPECT_THAT(answer, HasSubstr("GET /2"));
}

TEST(HttpServer, Serves64ConnectionsAtOnce) {
  constexpr int kClients = 64;
  // No request is answered before all have arrived, so they are open together.
  std::mutex mutex;
  std::vector<std::pair<std::string, std::shared_ptr<Responder>>> waiting;
  const auto server = serve([&](Request request, std::shared_ptr<Responder> responder) {
    std::lock_guard lock(mutex);
    waiting.emplace_back(request.body, std::move(responder));
    if (waiting.size() < kClients) return;
    for (auto& [body, each] : waiting) each->respond(text("re: " + body));
    waiting.clear();
  });
  std::vector<std::future<Result<Response>>> answers;
  for (int i = 0; i < kClients; ++i) {
    answers.push_back(std::async(std::launch::async, [&, i] {
      return request("POST", url(*server, "/"), std::to_string(i), kPatience);
    }));
  }
  for (int i = 0; i < kClients; ++i) {
    const auto response = answers[static_cast<std::size_t>(i)].get();
    ASSERT_TRUE(response) << response.error().message;
    EXPECT_EQ(response->body, "re: " + std::to_string(i));
  }
}

TEST(HttpServer, RefusesConnectionsBeyondTheLimit) {
  ServerOptions options;
  options.max_connections = 1;
  const auto server = serve(echo, options);
  RawClient first(server->port());
  first.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
  first.read_until("GET /");
  const auto second = request("GET", url(*server, "/"), "", kPatience);
  ASSERT_TRUE(second) << second.error().message;
  EXPECT_EQ(second->status, 503);
}

TEST(HttpServer, ConnectionsLeaveDescriptorsForAllElse) {
  EXPECT_EQ(connections_within(4096, 1u << 20), 4096u);
  EXPECT_EQ(connections_within(4096, 200), 100u);
  EXPECT_EQ(connections_within(10, 200), 10u);
  EXPECT_EQ(connections_within(4096, 0), 1u);
}

TEST(HttpServer, ManyConnectionsDoNotTakeTheLastDescriptor) {
  rlimit before = {};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit little = {100, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &little), 0);
  const auto server = serve(echo);
  // The clients are of this process too, and may have more.
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  const std::string address = url(*server, "/");
  std::vector<std::unique_ptr<RawClient>> idle;
  for (int i = 0; i < 50; ++i) {
    idle.push_back(std::make_unique<RawClient>(server->port()));
    idle.back()->send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    idle.back()->read_until("GET /");
  }
  const auto one_more = request("GET", address, "", kPatience);
  ASSERT_TRUE(one_more) << one_more.error().message;
  EXPECT_EQ(one_more->status, 503);
}

TEST(HttpServer, StopsAfterAnswersUnderWay) {
  ResponderSlot slot;
  auto server =
      serve([&](Request, std::shared_ptr<Responder> responder) { slot.put(std::move(responder)); });
  RawClient idle(server->port());
  const std::string address = url(*server, "/");
  auto answer =
      std::async(std::launch::async, [&] { return request("GET", address, "", kPatience); });
  const auto responder = slot.take();
  ASSERT_TRUE(responder);
  auto stopped = std::async(std::launch::async, [&] { server->stop(kPatience); });
  EXPECT_EQ(idle.read_all(), "");  // stop() has begun
  (*responder)->respond(text("finished"));
  const auto response = answer.get();
  ASSERT_TRUE(response) << response.error().message;
  EXPECT_EQ(response->body, "finished");
  stopped.get();
  EXPECT_FALSE(request("GET", address, "", kPatience));
}

TEST(HttpServer, StopEndsWhatOutlastsTheGrace) {
  ResponderSlot slot;
  Slot<bool> gone;
  auto server = serve([&](Request, std::shared_ptr<Responder> responder) {
    responder->on_disconnect([&] { gone.put(true); });
    slot.put(std::move(responder));
  });
  RawClient client(server->port());
  client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
  const auto responder = slot.take();
  ASSERT_TRUE(responder);
  server->stop(10ms);
  EXPECT_TRUE(gone.take());
  EXPECT_EQ(client.read_all(), "");
  server.reset();
  (*responder)->respond(text("into the void"));  // the server is gone, the responder is not
}

TEST(HttpServer, NamesATakenAddress) {
  const auto server = serve(echo);
  ServerOptions options;
  options.port = server->port();
  const auto second = Server::start(options, echo);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(
      second.error().message,
      fmt::format("cannot listen on 127.0.0.1:{}: Address already in use; choose another port",
                  server->port()));
}

TEST(HttpServer, ListensAgainAtOnceOnThePortOfAStoppedServer) {
  ServerOptions options;
  {
    const auto server = serve(echo);
    options.port = server->port();
    ASSERT_TRUE(request("GET", url(*server, "/"), "", kPatience));
  }
  const auto again = Server::start(options, echo);
  ASSERT_TRUE(again) << again.error().message;
}

TEST(HttpWire, ASegmentIsReadAsItWas) {
  EXPECT_EQ(encode_segment("tiny:python-2.1_x~"), "tiny:python-2.1_x~");
  EXPECT_EQ(encode_segment("a b/c?d=%&\xff"), "a%20b%2Fc%3Fd%3D%25%26%FF");
  EXPECT_EQ(decode_escapes(encode_segment("a b/c?d=%&\xff")), "a b/c?d=%&\xff");
  for (const char* bad : {"%", "a%4", "%4g", "%00"}) EXPECT_EQ(decode_escapes(bad), std::nullopt);
}

TEST(HttpClient, SaysWhoDoesNotAnswer) {
  ServerOptions options;
  std::string address;
  {
    const auto server = serve(echo);
    address = url(*server, "/");
  }
  const auto refused = request("GET", address, "", kPatience);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(refused.error().message, StartsWith("cannot connect to 127.0.0.1:"));
  EXPECT_THAT(refused.error().message, EndsWith(": Connection refused"));

  ResponderSlot slot;
  const auto server =
      serve([&](Request, std::shared_ptr<Responder> responder) { slot.put(std::move(responder)); });
  const auto late = request("GET", url(*server, "/"), "", 50ms);
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ErrorCode::kDeadlineExceeded);
  EXPECT_EQ(late.error().message,
            fmt::format("no answer from 127.0.0.1:{} within 50 ms", server->port()));
}

TEST(HttpClient, RefusesUrlsItCannotUse) {
  for (const char* bad : {"127.0.0.1:80/", "https://h/", "http://", "http://h:x/",
                          "http://h:70000/", "http://[::1/", "http://h/a b", "http://h/\r\nX: 1"}) {
    const auto response = request("GET", bad, "", kPatience);
    ASSERT_FALSE(response) << bad;
    EXPECT_EQ(response.error().code, ErrorCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace moiety::http
