#include "coordinator/runtime.h"

#include <gmock/gmock.h>

#include <boost/json.hpp>
#include <future>
#include <map>
#include <thread>

#include "http/client.h"
#include "tests/coordinator/simulation.h"

namespace moiety::coordinator {
namespace {

namespace json = boost::json;
using namespace std::chrono_literals;

constexpr auto kPatience = 20s;

/// Workers as real control connections within this process: they load at once, whatever it is.
class PretendedFleet : public Fleet {
 public:
  PretendedFleet(std::string address, const ClusterConfig& config)
      : address_(std::move(address)), config_(config) {}

  Result<void> start(WorkerId id, std::uint64_t incarnation) override {
    Worker& worker = workers_[id];
    worker.incarnation = incarnation;
    // Connecting blocks until the coordinator's loop answers, which is what calls us.
    worker.thread = std::thread([this, id, incarnation, &worker] {
      proto::Hello hello;
      hello.role = proto::Role::kWorker;
      hello.id = id.value;
      hello.incarnation = incarnation;
      hello.token = config_.token;
      hello.fingerprint = config_.model.fingerprint;
      hello.lane_address = "lane";
      auto connected = proto::Channel::connect(address_, hello);
      ASSERT_TRUE(connected) << connected.error().message;
      worker.channel = std::move(*connected);
      worker.channel->start(
          {[&worker](proto::ControlMessage message) {
             if (const auto* load = std::get_if<proto::LoadExperts>(&message)) {
               worker.experts = load->experts.size();
               (void)worker.channel->send(proto::ExpertsReady{load->epoch, 1, {}});
             } else if (const auto* drop = std::get_if<proto::DropExperts>(&message)) {
               worker.experts = drop->keep.size();
             } else {
               return;
             }
             proto::WorkerHeartbeat heartbeat;
             heartbeat.stats.experts_resident = worker.experts;
             (void)worker.channel->send(heartbeat);
           },
           [](const Error&) {}});
    });
    return {};
  }
  void stop(WorkerId id, std::uint64_t incarnation, Clock::time_point) override {
    kill(id, incarnation);
  }
  void kill(WorkerId id, std::uint64_t) override { ended_.push_back(id); }
  std::vector<Exited> poll(Clock::time_point) override {
    std::vector<Exited> exited;
    for (WorkerId id : ended_) {
      const auto it = workers_.find(id);
      if (it == workers_.end()) continue;
      it->second.thread.join();
      it->second.channel.reset();
      exited.push_back({id, it->second.incarnation, "exit status 0"});
      workers_.erase(it);
    }
    ended_.clear();
    return exited;
  }
  ~PretendedFleet() override {
    for (auto& [id, worker] : workers_) worker.thread.join();
  }

 private:
  struct Worker {
    std::uint64_t incarnation = 0;
    std::size_t experts = 0;  // channel thread only
    std::unique_ptr<proto::Channel> channel;
    std::thread thread;
  };
  const std::string address_;
  const ClusterConfig config_;
  std::map<WorkerId, Worker> workers_;
  std::vector<WorkerId> ended_;
};

class RuntimeTest : public testing::Test {
 protected:
  explicit RuntimeTest(std::int32_t capacity = 4) : config(test_config()) {
    config.capacity_per_layer = capacity;
    config.lease_ttl = 60000ms;  // these workers send heartbeats only when something changed
    RuntimeOptions options;
    options.admin.port = 0;
    options.first = {full_deployment()};
    options.make_fleet = [this](const std::string& address) {
      return std::make_unique<PretendedFleet>(address, config);
    };
    options.on_ready = [this](const RunInfo& info) { ready.set_value(info); };
    runtime = std::make_unique<Runtime>(config, std::move(options));
    loop = std::async(std::launch::async, [this] { return runtime->run(); });
  }
  ~RuntimeTest() override {
    if (!loop.valid()) return;
    runtime->shut_down("the test ends");
    EXPECT_EQ(loop.wait_for(kPatience), std::future_status::ready);
  }
  RunInfo wait_ready() {
    auto future = ready.get_future();
    EXPECT_EQ(future.wait_for(kPatience), std::future_status::ready);
    return future.get();
  }
  http::Response call(const RunInfo& info,
                      const std::string& method,
                      const std::string& path,
                      const std::string& body = "") {
    auto response = http::request(method, "http://" + info.admin_address + path, body, kPatience);
    EXPECT_TRUE(response) << response.error().message;
    return response ? *response : http::Response{};
  }

  ClusterConfig config;
  std::promise<RunInfo> ready;
  std::unique_ptr<Runtime> runtime;
  std::future<Result<void>> loop;
};

TEST_F(RuntimeTest, ServesTheAdminApiFromStartToShutdown) {
  const RunInfo info = wait_ready();
  EXPECT_EQ(call(info, "GET", "/health").status, 200);
  EXPECT_EQ(json::parse(call(info, "GET", "/v1/status").body).at("workers").as_array().size(), 4u);
  EXPECT_THAT(call(info, "GET", "/metrics").body, testing::HasSubstr("moiety_coordinator_epoch 1"));

  // Deploying answers when it is done.
  const http::Response deployed =
      call(info, "POST", "/v1/deployments", R"({"name": "all", "full": true})");
  EXPECT_EQ(deployed.status, 200) << deployed.body;
  EXPECT_EQ(json::parse(deployed.body).at("state").as_string(), "succeeded");
  const http::Response again =
      call(info, "POST", "/v1/deployments", R"({"name": "all", "full": true})");
  EXPECT_EQ(again.status, 409);
  EXPECT_EQ(json::parse(again.body).at("error").at("code").as_string(), "already_exists");
  EXPECT_EQ(
      json::parse(call(info, "GET", "/v1/deployments").body).at("deployments").as_array().size(),
      2u);

  // Or at once.
  const http::Response accepted = call(info, "DELETE", "/v1/deployments/tiny?wait=false");
  EXPECT_EQ(accepted.status, 202);
  const auto id = json::parse(accepted.body).at("operation_id").as_int64();
  const auto deadline = Clock::now() + kPatience;
  std::string state;
  while (state != "succeeded" && state != "failed" && Clock::now() < deadline) {
    const auto operation =
        json::parse(call(info, "GET", "/v1/operations/" + std::to_string(id)).body);
    state = std::string(operation.at("state").as_string());
  }
  EXPECT_EQ(state, "succeeded");
  EXPECT_EQ(call(info, "DELETE", "/v1/deployments/tiny").status, 404);
  EXPECT_EQ(call(info, "GET", "/v1/operations/999").status, 404);
  EXPECT_EQ(call(info, "GET", "/nothing").status, 404);

  EXPECT_EQ(call(info, "POST", "/v1/shutdown").status, 202);
  ASSERT_EQ(loop.wait_for(kPatience), std::future_status::ready);
  EXPECT_TRUE(loop.get());
}

TEST_F(RuntimeTest, RoutersGetTheEpochAndAreWaitedFor) {
  const RunInfo info = wait_ready();
  proto::Hello hello;
  hello.role = proto::Role::kRouter;
  hello.token = "wrong";
  hello.fingerprint = config.model.fingerprint;
  EXPECT_FALSE(proto::Channel::connect(info.control_address, hello));
  hello.token = info.token;
  auto channel = proto::Channel::connect(info.control_address, hello);
  ASSERT_TRUE(channel) << channel.error().message;
  std::promise<EpochView> first;
  std::promise<void> told_to_end;
  (*channel)->start({[&](proto::ControlMessage message) {
                       if (auto* publish = std::get_if<proto::PublishEpoch>(&message)) {
                         first.set_value(std::move(publish->view));
                       } else if (std::holds_alternative<proto::Shutdown>(message)) {
                         told_to_end.set_value();
                       }
                     },
                     [](const Error&) {}});
  auto view = first.get_future();
  ASSERT_EQ(view.wait_for(kPatience), std::future_status::ready);
  EXPECT_EQ(view.get().workers.size(), 4u);
  runtime->shut_down("test");
  auto told = told_to_end.get_future();
  ASSERT_EQ(told.wait_for(kPatience), std::future_status::ready);
  EXPECT_EQ(loop.wait_for(0s), std::future_status::timeout) << "ended before the router did";
  (*channel)->close();
  ASSERT_EQ(loop.wait_for(kPatience), std::future_status::ready);
}

class TooSmall : public RuntimeTest {
 protected:
  TooSmall() : RuntimeTest(3) {}
};

TEST_F(TooSmall, FailedFirstDeploymentsEndTheRun) {
  ASSERT_EQ(loop.wait_for(kPatience), std::future_status::ready);
  const auto result = loop.get();
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::kResourceExhausted);
}

}  // namespace
}  // namespace moiety::coordinator
