#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory>

#include "fabric/protocol.h"
#include "fabric/ucx/engine.h"
#include "fabric/ucx/ucx_lane.h"
#include "tests/fabric/lane_suite.h"

namespace moiety::fabric {
namespace {

class UcxBackend {
 public:
  std::unique_ptr<WorkerPort> port(const LaneIdentity& identity) {
    auto port = open_ucx_port(identity, "127.0.0.1");
    EXPECT_TRUE(port) << port.error().message;
    return std::move(*port);
  }
  std::unique_ptr<RouterLane> lane(const LaneIdentity& identity) {
    auto lane = open_ucx_router_lane(identity);
    EXPECT_TRUE(lane) << lane.error().message;
    return std::move(*lane);
  }
  /// A port that was open and is closed again.
  std::string dead_address() { return port(worker_identity(99))->address(); }
};

INSTANTIATE_TYPED_TEST_SUITE_P(Ucx, LaneSuite, UcxBackend);

TEST(UcxLane, BadAddressesAreInvalidArguments) {
  for (const char* host :
       {"", "no.such.host.example", "0.0.0.0", "::", "127.0.0.1:80", "300.1.1.1"}) {
    const auto port = open_ucx_port(worker_identity(3), host);
    ASSERT_FALSE(port) << host;
    EXPECT_EQ(port.error().code, ErrorCode::kInvalidArgument) << port.error().message;
  }
  const auto lane = UcxBackend().lane(router_identity(5));
  for (const char* address :
       {"", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "localhost:80", ":80", "127.0.0.1:1:2"}) {
    const auto result = connect_now(*lane, address, 3, 1, generous());
    ASSERT_FALSE(result) << address;
    EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument) << result.error().message;
  }
}

// What a router lacks itself is no word against a worker.
TEST(UcxLane, AConnectWithoutDescriptorsSaysSo) {
  UcxBackend backend;
  const EchoWorker worker(backend.port(worker_identity(3)), 3);
  const auto lane = backend.lane(router_identity(5));
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit none = {0, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  const auto refused = connect_now(*lane, worker.address(), 3, 1, generous());
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted) << refused.error().message;
  const auto again = connect_now(*lane, worker.address(), 3, 1, generous());
  EXPECT_TRUE(again) << again.error().message;
}

std::chrono::nanoseconds process_cpu() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto of = [](const timeval& time) {
    return std::chrono::seconds(time.tv_sec) + std::chrono::microseconds(time.tv_usec);
  };
  return of(usage.ru_utime) + of(usage.ru_stime);
}

// A router and three workers that wait, in one process: together below 1 % of a core, UCX's own
// thread included.
TEST(UcxLane, IdleCostsNothing) {
  UcxBackend backend;
  std::vector<std::unique_ptr<EchoWorker>> workers;
  const auto lane = backend.lane(router_identity(5));
  for (std::uint64_t id = 1; id <= 3; ++id) {
    workers.push_back(std::make_unique<EchoWorker>(backend.port(worker_identity(id)), id));
    ASSERT_TRUE(connect_now(*lane, workers.back()->address(), id, 1, generous()));
  }
  const EchoWorker unconnected(backend.port(worker_identity(4)), 4);
  EXPECT_EQ(lane->wait(in(milliseconds(100))).type,
            Event::Type::kTimeout);  // lets the start settle
  const auto before = process_cpu();
  EXPECT_EQ(lane->wait(in(milliseconds(1000))).type, Event::Type::kTimeout);
  EXPECT_LT(process_cpu() - before, milliseconds(10));
}

// Both sides fall asleep between messages; being woken for the hundredth time costs no more than
// for the first.
TEST(UcxLane, EveryWakeUpIsPrompt) {
  UcxBackend backend;
  const EchoWorker worker(backend.port(worker_identity(3)), 3);
  const auto lane = backend.lane(router_identity(5));
  ASSERT_TRUE(connect_now(*lane, worker.address(), 3, 1, generous()));
  std::vector<std::chrono::nanoseconds> trips;
  for (std::uint64_t step = 1; step <= 200; ++step) {
    const auto asleep = Clock::now() + std::chrono::microseconds(400);
    while (Clock::now() < asleep) sched_yield();
    const auto sent_at = Clock::now();
    ASSERT_TRUE(lane->send(3, dispatch_header(5, step), payload_of(5, step, 100)));
    ASSERT_EQ(lane->wait(generous()).type, Event::Type::kMessage);
    trips.push_back(Clock::now() - sent_at);
  }
  std::sort(trips.begin(), trips.end());
  EXPECT_LT(trips[trips.size() * 3 / 4], milliseconds(1));
}

/// A TCP connection that says nothing, or something that is not UCX.
class Stranger {
 public:
  explicit Stranger(const std::string& address) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    const auto colon = address.rfind(':');
    sockaddr_in target = {};
    target.sin_family = AF_INET;
    target.sin_port = htons(static_cast<std::uint16_t>(std::stoi(address.substr(colon + 1))));
    inet_pton(AF_INET, address.substr(0, colon).c_str(), &target.sin_addr);
    EXPECT_EQ(::connect(socket_, reinterpret_cast<const sockaddr*>(&target), sizeof target), 0);
  }
  ~Stranger() { ::close(socket_); }
  void say(std::string_view text) {
    EXPECT_GT(::send(socket_, text.data(), text.size(), MSG_NOSIGNAL), 0);
  }

 private:
  int socket_;
};

TEST(UcxLane, StrangersDoNotDisturb) {
  UcxBackend backend;
  const EchoWorker worker(backend.port(worker_identity(3)), 3);
  const Stranger silent(worker.address());
  Stranger talking(worker.address());
  talking.say("GET / HTTP/1.1\r\nHost: worker\r\n\r\n");
  const auto lane = backend.lane(router_identity(5));
  ASSERT_TRUE(connect_now(*lane, worker.address(), 3, 1, generous()));
  ASSERT_TRUE(lane->send(3, dispatch_header(5, 1), payload_of(5, 1, 1000)));
  EXPECT_EQ(lane->wait(generous()).type, Event::Type::kMessage);
  const auto before = process_cpu();
  EXPECT_EQ(lane->wait(in(milliseconds(500))).type, Event::Type::kTimeout);
  EXPECT_LT(process_cpu() - before, milliseconds(25)) << "a silent stranger keeps the port busy";
}

/// A peer that speaks UCX but not our protocol.
class RawRouter {
 public:
  explicit RawRouter(const std::string& address) : context_(std::move(*ucx::Context::create())) {
    const auto target = ucx::parse_address(address);
    EXPECT_TRUE(target);
    ucp_ep_params_t params = {};
    params.field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR |
                        UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
    params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER;
    params.sockaddr.addr = reinterpret_cast<const sockaddr*>(&target->storage);
    params.sockaddr.addrlen = target->length;
    params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params.err_handler.cb = [](void* self, ucp_ep_h, ucs_status_t) {
      static_cast<RawRouter*>(self)->closed_ = true;
    };
    params.err_handler.arg = this;
    EXPECT_EQ(ucp_ep_create(context_.worker(), &params, &endpoint_), UCS_OK);
    ucp_am_handler_param_t handler = {};
    handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                         UCP_AM_HANDLER_PARAM_FIELD_ARG;
    handler.id = ucx::kHelloId;
    handler.cb = [](void* self, const void*, std::size_t, void*, std::size_t,
                    const ucp_am_recv_param_t*) {
      static_cast<RawRouter*>(self)->answered_ = true;
      return UCS_OK;
    };
    handler.arg = this;
    EXPECT_EQ(ucp_worker_set_am_recv_handler(context_.worker(), &handler), UCS_OK);
  }
  ~RawRouter() {
    ucp_request_param_t param = {};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = UCP_EP_CLOSE_FLAG_FORCE;
    finish(ucp_ep_close_nbx(endpoint_, &param));
  }
  void send(unsigned id, std::span<const std::byte> header, std::span<const std::byte> payload) {
    ucp_request_param_t param = {};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = UCP_AM_SEND_FLAG_REPLY;
    finish(ucp_am_send_nbx(endpoint_, id, header.data(), header.size(), payload.data(),
                           payload.size(), &param));
  }
  /// Whether the port answers the hello.
  bool is_answered() { return becomes(answered_); }
  /// Whether the port hangs up.
  bool is_closed_by_peer() { return becomes(closed_); }

 private:
  bool becomes(const bool& flag) {
    const auto deadline = generous();
    while (!flag && Clock::now() < deadline) ucp_worker_progress(context_.worker());
    return flag;
  }
  void finish(ucs_status_ptr_t request) {
    if (!UCS_PTR_IS_PTR(request)) return;
    const auto deadline = generous();
    while (ucp_request_check_status(request) == UCS_INPROGRESS && Clock::now() < deadline) {
      ucp_worker_progress(context_.worker());
    }
    ucp_request_free(request);
  }

  ucx::Context context_;
  ucp_ep_h endpoint_ = nullptr;
  bool answered_ = false;
  bool closed_ = false;
};

struct Malformed {
  std::string name;
  bool hello_first;
  unsigned id;
  std::vector<std::byte> header;
  std::vector<std::byte> payload;
};

std::vector<std::byte> wire(const Header& header, std::uint64_t sequence) {
  const ucx::WireHeader wire_header{header, sequence};
  const auto bytes = std::as_bytes(std::span(&wire_header, 1));
  return {bytes.begin(), bytes.end()};
}

std::vector<Malformed> malformed_messages() {
  Header wrong_magic = dispatch_header(5, 1);
  wrong_magic.magic = 0;
  Header wrong_kind = dispatch_header(5, 1);
  wrong_kind.kind = static_cast<Kind>(77);
  const Header good = dispatch_header(5, 1);
  const std::vector<std::byte> some(100);
  const std::vector<std::byte> large(5 << 20);
  return {{"no hello", false, ucx::kMessageId, wire(good, 0), some},
          {"no hello, rendezvous", false, ucx::kMessageId, wire(good, 0), large},
          {"empty hello", false, ucx::kHelloId, {}, {}},
          {"long hello", false, ucx::kHelloId, {}, large},
          {"second hello", true, ucx::kHelloId, {}, encode_hello({5, 3, 1, kToken})},
          {"empty header", true, ucx::kMessageId, {}, some},
          {"short header", true, ucx::kMessageId, std::vector<std::byte>(80), some},
          {"wrong magic", true, ucx::kMessageId, wire(wrong_magic, 0), some},
          {"wrong magic, rendezvous", true, ucx::kMessageId, wire(wrong_magic, 0), large},
          {"wrong kind", true, ucx::kMessageId, wire(wrong_kind, 0), some},
          {"far sequence", true, ucx::kMessageId, wire(good, 1 << 20), some},
          {"past sequence", true, ucx::kMessageId, wire(good, ~std::uint64_t{0}), some}};
}

TEST(UcxLane, MalformedMessagesCloseTheirLaneOnly) {
  UcxBackend backend;
  EchoWorker worker(backend.port(worker_identity(3)), 3);
  const auto lane = backend.lane(router_identity(6));
  ASSERT_TRUE(connect_now(*lane, worker.address(), 3, 1, generous()));
  std::size_t greeted = 0;
  for (const Malformed& message : malformed_messages()) {
    SCOPED_TRACE(message.name);
    RawRouter raw(worker.address());
    if (message.hello_first) {
      raw.send(ucx::kHelloId, {}, encode_hello({5, 3, 1, kToken}));
      ASSERT_TRUE(raw.is_answered());
      ++greeted;
    }
    raw.send(message.id, message.header, message.payload);
    EXPECT_TRUE(raw.is_closed_by_peer());
    ASSERT_TRUE(lane->send(3, dispatch_header(6, 1), payload_of(6, 1, 2000)));
    const Event event = lane->wait(generous());
    ASSERT_EQ(event.type, Event::Type::kMessage);
    EXPECT_EQ(event.payload, payload_of(6, 1, 2000));
  }
  worker.stop();
  EXPECT_EQ(worker.lost_lanes().size(), greeted)
      << "each open lane is lost once, the others never were lanes";
}

}  // namespace
}  // namespace moiety::fabric
