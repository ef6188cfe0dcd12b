#include "coordinator/runtime.h"

#include <gmock/gmock.h>

#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>

#include <atomic>
#include <boost/json.hpp>
#include <future>
#include <map>
#include <mutex>
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

  Result<ProcessIdentity> start(WorkerId id, std::uint64_t incarnation) override {
    ++starts;
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
    return ProcessIdentity{1000 + id.value, incarnation};
  }
  bool adopt(WorkerId, std::uint64_t, const ProcessIdentity&) override {
    ++adoptions;
    return false;
  }
  void stop(WorkerId id, std::uint64_t incarnation, Clock::time_point) override {
    kill(id, incarnation);
  }
  void kill(WorkerId id, std::uint64_t) override {
    const std::lock_guard lock(mutex_);
    ended_.push_back(id);
  }
  /// Ends a worker from outside; any thread.
  void crash(WorkerId id) { kill(id, 0); }
  std::vector<Exited> poll(Clock::time_point) override {
    std::vector<Exited> exited;
    const std::lock_guard lock(mutex_);
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
  std::mutex mutex_;
  std::vector<WorkerId> ended_;  // guarded by mutex_

 public:
  std::atomic<int> starts = 0;
  std::atomic<int> adoptions = 0;
};

class RuntimeTest : public testing::Test {
 protected:
  explicit RuntimeTest(std::int32_t capacity = 4) : config(test_config()) {
    config.capacity_per_layer = capacity;
    config.lease_ttl = 60000ms;  // these workers send heartbeats only when something changed
    std::string name = (std::filesystem::temp_directory_path() / "moiety-runtime-XXXXXX").string();
    dir = ::mkdtemp(name.data());
  }
  ~RuntimeTest() override {
    end();
    std::filesystem::remove_all(dir);
  }
  /// Begins to run; with a state file if `durable`.
  void begin(bool durable = false) {
    RuntimeOptions options;
    options.admin.port = 0;
    options.first = {full_deployment()};
    if (durable) {
      auto store = Store::open(dir / "state.sqlite", config.model.fingerprint);
      ASSERT_TRUE(store) << store.error().message;
      if (!store->identity().token.empty()) config.token = store->identity().token;
      options.store.emplace(std::move(*store));
    }
    options.make_fleet = [this](const std::string& address) {
      auto made = std::make_unique<PretendedFleet>(address, config);
      fleet = made.get();
      return made;
    };
    ready = {};
    options.on_ready = [this](const RunInfo& info) { ready.set_value(info); };
    runtime = std::make_unique<Runtime>(config, std::move(options));
    loop = std::async(std::launch::async, [this] { return runtime->run(); });
  }
  void end() {
    if (!loop.valid()) return;
    runtime->shut_down("the test ends");
    ASSERT_EQ(loop.wait_for(kPatience), std::future_status::ready);
    (void)loop.get();
    runtime.reset();
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

  json::value get(const RunInfo& info, const std::string& path) {
    return json::parse(call(info, "GET", path).body);
  }
  /// Polls until `condition` holds.
  template <class Condition>
  static bool wait_until(const Condition& condition) {
    const auto deadline = Clock::now() + kPatience;
    while (!condition()) {
      if (Clock::now() > deadline) return false;
      std::this_thread::sleep_for(5ms);
    }
    return true;
  }

  std::filesystem::path dir;
  ClusterConfig config;
  PretendedFleet* fleet = nullptr;  // the runtime's
  std::promise<RunInfo> ready;
  std::unique_ptr<Runtime> runtime;
  std::future<Result<void>> loop;
};

TEST_F(RuntimeTest, ServesTheAdminApiFromStartToShutdown) {
  begin();
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
  const std::string id(json::parse(accepted.body).at("operation_id").as_string());
  const auto deadline = Clock::now() + kPatience;
  std::string state;
  while (state != "succeeded" && state != "failed" && Clock::now() < deadline) {
    const auto operation = json::parse(call(info, "GET", "/v1/operations/" + id).body);
    state = std::string(operation.at("state").as_string());
  }
  EXPECT_EQ(state, "succeeded");
  EXPECT_EQ(call(info, "DELETE", "/v1/deployments/tiny").status, 404);
  EXPECT_EQ(call(info, "GET", "/v1/operations/999").status, 404);
  EXPECT_EQ(call(info, "GET", "/nothing").status, 404);
  EXPECT_EQ(get(info, "/v1/operations").at("operations").as_array().size(), 5u);
  const json::value placement = get(info, "/v1/placement");
  EXPECT_EQ(placement.at("layers").as_array().size(), 3u);
  EXPECT_EQ(placement.at("epoch"), get(info, "/v1/status").at("epoch"));
  const json::array decisions = get(info, "/v1/decisions").at("decisions").as_array();
  ASSERT_GT(decisions.size(), 3u);
  EXPECT_EQ(get(info, "/v1/decisions?after=" +
                          json::serialize(decisions[decisions.size() - 2].at("number")))
                .at("decisions")
                .as_array()
                .size(),
            1u);

  EXPECT_EQ(call(info, "POST", "/v1/shutdown").status, 202);
  ASSERT_EQ(loop.wait_for(kPatience), std::future_status::ready);
  EXPECT_TRUE(loop.get());
}

TEST_F(RuntimeTest, ChangesCanBeRetriedAndConflictsSayTheEpoch) {
  begin();
  const RunInfo info = wait_ready();
  const auto epoch = get(info, "/v1/status").at("epoch").as_int64();
  const std::string body = R"({"name": "all", "full": true, "operation_id": "mine"})";
  const http::Response first = call(info, "POST", "/v1/deployments", body);
  EXPECT_EQ(first.status, 200) << first.body;
  EXPECT_EQ(json::parse(first.body).at("operation_id").as_string(), "mine");
  const http::Response again = call(info, "POST", "/v1/deployments", body);
  EXPECT_EQ(again.status, 200) << again.body;
  EXPECT_EQ(again.body, first.body);
  EXPECT_EQ(call(info, "POST", "/v1/deployments?wait=false", body).status, 200);

  const http::Response other =
      call(info, "DELETE", "/v1/deployments/all?operation_id=mine");  // the id of another change
  EXPECT_EQ(other.status, 409) << other.body;
  const std::string expected = "expected_epoch=" + std::to_string(epoch);
  const http::Response stale = call(info, "DELETE", "/v1/deployments/all?" + expected);
  EXPECT_EQ(stale.status, 409) << stale.body;
  const json::value conflict = json::parse(stale.body);
  EXPECT_EQ(conflict.at("error").at("code").as_string(), "stale_epoch");
  const auto now = conflict.at("epoch").as_int64();
  EXPECT_EQ(now, get(info, "/v1/status").at("epoch").as_int64());
  EXPECT_EQ(
      call(info, "DELETE", "/v1/deployments/all?expected_epoch=" + std::to_string(now)).status,
      200);
}

TEST_F(RuntimeTest, AnotherCoordinatorGoesOnWithTheState) {
  begin(/*durable=*/true);
  const RunInfo before = wait_ready();
  EXPECT_EQ(call(before, "POST", "/v1/deployments",
                 R"({"name": "all", "full": true, "on_missing": "fail", "operation_id": "mine"})")
                .status,
            200);
  EXPECT_EQ(call(before, "DELETE", "/v1/deployments/tiny").status, 200);
  const json::value deployments = get(before, "/v1/deployments");
  const auto epoch = get(before, "/v1/status").at("epoch").as_int64();
  EXPECT_FALSE(get(before, "/v1/status").at("restored").as_bool());
  end();

  begin(/*durable=*/true);
  const RunInfo after = wait_ready();
  EXPECT_EQ(after.control_address, before.control_address);
  EXPECT_EQ(after.admin_address, before.admin_address);
  EXPECT_EQ(after.token, before.token);
  EXPECT_TRUE(get(after, "/v1/status").at("restored").as_bool());
  EXPECT_TRUE(wait_until([&] { return get(after, "/v1/status").at("experts_missing") == 0; }));
  EXPECT_EQ(get(after, "/v1/deployments"), deployments) << "the undeployed one is back";
  EXPECT_GE(get(after, "/v1/status").at("epoch").as_int64(), epoch);
  EXPECT_EQ(get(after, "/v1/operations/mine").at("state").as_string(), "succeeded");
  EXPECT_EQ(call(after, "POST", "/v1/deployments",
                 R"({"name": "all", "full": true, "on_missing": "fail", "operation_id": "mine"})")
                .status,
            200);
}

/// While it lives this process can write into no file.
class NoFileCanBeWritten {
 public:
  NoFileCanBeWritten() {
    ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit none{0, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &none);
  }
  ~NoFileCanBeWritten() { ::setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_{};
};

TEST_F(RuntimeTest, AStateThatCannotBeWrittenStopsChangesAndNothingElse) {
  begin(/*durable=*/true);
  const RunInfo info = wait_ready();
  const json::value deployments = get(info, "/v1/deployments");
  std::optional<NoFileCanBeWritten> broken(std::in_place);

  const std::string body = R"({"name": "all", "full": true, "operation_id": "mine"})";
  const http::Response refused = call(info, "POST", "/v1/deployments", body);
  EXPECT_EQ(refused.status, 500) << refused.body;
  EXPECT_THAT(refused.body, testing::AllOf(testing::HasSubstr("state.sqlite"),
                                           testing::HasSubstr("nothing was changed")));
  EXPECT_EQ(call(info, "GET", "/v1/operations/mine").status, 404) << "as if never asked";
  EXPECT_EQ(get(info, "/v1/deployments"), deployments);
  EXPECT_TRUE(get(info, "/v1/status").at("blocked").is_null());

  // A loss cannot be undone: what follows from it waits for the disk.
  const int starts = fleet->starts;
  fleet->crash(WorkerId{2});
  EXPECT_TRUE(wait_until([&] { return get(info, "/v1/status").at("blocked").is_string(); }));
  EXPECT_EQ(call(info, "POST", "/v1/deployments", body).status, 500);
  EXPECT_EQ(fleet->starts, starts);
  broken.reset();
  EXPECT_TRUE(wait_until([&] {
    const json::value status = get(info, "/v1/status");
    return status.at("blocked").is_null() && status.at("experts_missing") == 0;
  }));
  EXPECT_EQ(fleet->starts, starts + 1);
  EXPECT_EQ(call(info, "POST", "/v1/deployments", body).status, 200);
  EXPECT_THAT(call(info, "GET", "/metrics").body,
              testing::HasSubstr("moiety_changes_refused_total 2"));
}

TEST_F(RuntimeTest, AWebPageChangesNothing) {
  begin();
  const RunInfo info = wait_ready();
  const auto rebalance = [&](const std::string& origin, const std::string& token = "") {
    const auto response = http::request(
        "POST", "http://" + info.admin_address + "/v1/rebalance?wait=false", "", kPatience,
        {{"Origin", origin}, {"Content-Type", "text/plain"}, {"Authorization", "Bearer " + token}});
    return response ? response->status : 0;
  };
  EXPECT_EQ(rebalance("http://evil.example"), 403);
  EXPECT_EQ(rebalance("null"), 403);
  EXPECT_EQ(rebalance("http://proxy.example", info.token), 202) << "a page cannot know it";
  EXPECT_EQ(rebalance("http://" + info.admin_address), 202);
  EXPECT_EQ(call(info, "POST", "/v1/rebalance?wait=false").status, 202);
}

class Remote : public RuntimeTest {};

TEST_F(Remote, TheAdminApiAsksForTheToken) {
  RuntimeOptions options;
  options.admin.port = 0;
  options.admin_token = true;
  options.first = {full_deployment()};
  options.make_fleet = [this](const std::string& address) {
    return std::make_unique<PretendedFleet>(address, config);
  };
  options.on_ready = [this](const RunInfo& info) { ready.set_value(info); };
  runtime = std::make_unique<Runtime>(config, std::move(options));
  loop = std::async(std::launch::async, [this] { return runtime->run(); });
  const RunInfo info = wait_ready();
  EXPECT_EQ(call(info, "GET", "/health").status, 200);
  EXPECT_EQ(call(info, "GET", "/metrics").status, 200);
  EXPECT_EQ(call(info, "GET", "/v1/status").status, 401);
  EXPECT_EQ(call(info, "POST", "/v1/shutdown").status, 401);
  const auto with = [&](const std::string& value) {
    return http::request("GET", "http://" + info.admin_address + "/v1/status", "", kPatience,
                         {{"Authorization", value}})
        ->status;
  };
  EXPECT_EQ(with("Bearer " + config.token), 200);
  EXPECT_EQ(with("Bearer " + config.token + "x"), 401);
  EXPECT_EQ(with(config.token), 401);
}

TEST_F(RuntimeTest, RoutersGetTheEpochAndAreWaitedFor) {
  begin();
  const RunInfo info = wait_ready();
  proto::Hello hello;
  hello.role = proto::Role::kRouter;
  hello.incarnation = 1;
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
  TooSmall() : RuntimeTest(3) { begin(); }
};

TEST_F(TooSmall, FailedFirstDeploymentsEndTheRun) {
  ASSERT_EQ(loop.wait_for(kPatience), std::future_status::ready);
  const auto result = loop.get();
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::kResourceExhausted);
}

}  // namespace
}  // namespace moiety::coordinator
