#include "coordinator/admin_api.h"

#include <gmock/gmock.h>

#include <boost/json.hpp>

#include "coordinator/metrics.h"
#include "coordinator/status_json.h"
#include "tests/coordinator/simulation.h"

namespace moiety::coordinator {
namespace {

namespace json = boost::json;
using testing::HasSubstr;

class AdminTest : public testing::Test {
 protected:
  Result<AdminCall> parse(std::string_view method,
                          std::string_view path,
                          std::string_view query = "",
                          std::string_view body = "") const {
    return parse_admin_call(method, path, query, body, context);
  }
  ErrorCode error(std::string_view method,
                  std::string_view path,
                  std::string_view query = "",
                  std::string_view body = "") const {
    const auto call = parse(method, path, query, body);
    EXPECT_FALSE(call) << method << " " << path << "?" << query << " " << body;
    return call ? ErrorCode::kInternal : call.error().code;
  }
  /// A change; `Request` is what it must be.
  template <class Request>
  std::pair<Request, bool> change(std::string_view method,
                                  std::string_view path,
                                  std::string_view query = "",
                                  std::string_view body = "") const {
    const auto call = parse(method, path, query, body);
    EXPECT_TRUE(call) << call.error().message;
    const auto& parsed = std::get<AdminChange>(*call);
    return {std::get<Request>(parsed.request), parsed.wait};
  }
  std::string subset_body(const std::string& name,
                          const Deployment& deployment,
                          const std::string& checkpoint = "fingerprint-a") const {
    planner::Subset subset{checkpoint, {"python"}, "mean_prob", {}};
    for (std::size_t layer = 0; layer < deployment.kept.layers.size(); ++layer) {
      auto ids = deployment.kept.layers[layer];
      ids.push_back(context.model.layers[layer].num_routed);  // the shared one
      subset.experts_kept_per_layer.push_back(ids);
    }
    return R"({"name": ")" + name + R"(", "subset": )" + planner::subset_to_json(subset) + "}";
  }
  const AdminContext context{"tiny", test_model()};
};

TEST_F(AdminTest, ChangesThatAWebPageMayHaveSent) {
  for (const char* host :
       {"", "localhost", "LocalHost:8001", "127.0.0.1:8001", "[::1]:8001", "10.1.2.3"})
    EXPECT_FALSE(may_be_from_a_page(host, "")) << host;
  EXPECT_FALSE(may_be_from_a_page("localhost:8001", "http://localhost:8001"));
  for (const char* host :
       {"evil.example", "evil.example:8001", "127.0.0.1.evil.example", "localhost.evil.example"}) {
    EXPECT_TRUE(may_be_from_a_page(host, "")) << host;
    EXPECT_TRUE(may_be_from_a_page(host, std::string("http://") + host))
        << "a name that leads here";
  }
  for (const char* origin :
       {"http://evil.example", "null", "http://localhost:3000", "localhost:8001"})
    EXPECT_TRUE(may_be_from_a_page("localhost:8001", origin)) << origin;
}

TEST_F(AdminTest, TheQueryIsDecoded) {
  const auto [request, wait] =
      change<RebalanceRequest>("POST", "/v1/rebalance", "operation_id=a%3Ab&wait=fals%65");
  EXPECT_EQ(request.operation.value, "a:b");
  EXPECT_FALSE(wait);
  for (const char* bad : {"operation_id=a%2", "operation_id=a%00", "operation_id=a%20b"})
    EXPECT_EQ(error("POST", "/v1/rebalance", bad), ErrorCode::kInvalidArgument) << bad;
}

TEST_F(AdminTest, ErrorsAreJsonWhateverTheyQuote) {
  for (const char* name : {"\xff", "caf\xc3", "caf\xc3\xa9"}) {
    const auto refused = parse("DELETE", std::string("/v1/deployments/") + name);
    ASSERT_FALSE(refused);
    const json::value body = json::parse(error_body(refused.error()));  // throws at broken UTF-8
    EXPECT_THAT(std::string(body.at("error").at("message").as_string()), HasSubstr("name"));
  }
}

TEST_F(AdminTest, SimplePaths) {
  EXPECT_TRUE(std::holds_alternative<GetHealth>(*parse("GET", "/health")));
  EXPECT_TRUE(std::holds_alternative<GetMetrics>(*parse("GET", "/metrics")));
  EXPECT_TRUE(std::holds_alternative<GetStatus>(*parse("GET", "/v1/status")));
  EXPECT_TRUE(std::holds_alternative<GetDeployments>(*parse("GET", "/v1/deployments")));
  EXPECT_TRUE(std::holds_alternative<PostShutdown>(*parse("POST", "/v1/shutdown")));
  EXPECT_TRUE(std::holds_alternative<GetPlacement>(*parse("GET", "/v1/placement")));
  EXPECT_TRUE(std::holds_alternative<GetOperations>(*parse("GET", "/v1/operations")));
  EXPECT_EQ(std::get<GetDecisions>(*parse("GET", "/v1/decisions")).after, 0u);
  EXPECT_EQ(std::get<GetDecisions>(*parse("GET", "/v1/decisions", "after=7")).after, 7u);
  EXPECT_EQ(std::get<GetOperation>(*parse("GET", "/v1/operations/deploy-12")).id,
            OperationId{"deploy-12"});
}

TEST_F(AdminTest, UnknownPathsAndIdsAreRefused) {
  for (const char* path :
       {"/", "/v1/statu", "/v1/status/", "/v1/deployments/a", "/v1/operation", "/v1/workers/1"}) {
    EXPECT_EQ(error("GET", path), ErrorCode::kNotFound) << path;
  }
  EXPECT_EQ(error("PUT", "/v1/status"), ErrorCode::kNotFound);
  EXPECT_EQ(error("POST", "/v1/workers/1/stop"), ErrorCode::kNotFound);
  EXPECT_EQ(error("GET", "/v1/decisions", "since=1"), ErrorCode::kInvalidArgument);
  const std::string long_id = "/v1/operations/" + std::string(129, 'a');
  for (const char* path : {"/v1/operations/", "/v1/operations/a b", long_id.c_str()}) {
    EXPECT_EQ(error("GET", path), ErrorCode::kInvalidArgument) << path;
  }
  for (const char* path : {"/v1/workers/x/drain", "/v1/workers/-1/drain", "/v1/workers//drain"}) {
    EXPECT_EQ(error("POST", path), ErrorCode::kInvalidArgument) << path;
  }
}

TEST_F(AdminTest, DeploysASubset) {
  const Deployment python = random_subset("python", 5, 3);
  const auto [request, wait] =
      change<DeployRequest>("POST", "/v1/deployments", "wait=false", subset_body("python", python));
  EXPECT_EQ(request.deployment, python);
  EXPECT_EQ(request.operation, OperationId{});
  EXPECT_FALSE(request.expected_epoch);
  EXPECT_FALSE(wait);
}

TEST_F(AdminTest, EveryChangeCanNameItselfAndTheEpochThatItWasDecidedBy) {
  const std::string_view query = "operation_id=op-1&expected_epoch=7&wait=false";
  const std::string_view body = R"({"operation_id": "op-1", "expected_epoch": 7, "wait": false})";
  const auto check = [](const auto& parsed) {
    EXPECT_EQ(parsed.first.operation, OperationId{"op-1"});
    EXPECT_EQ(parsed.first.expected_epoch, Epoch{7});
    EXPECT_FALSE(parsed.second);
  };
  check(change<DeployRequest>("POST", "/v1/deployments", query, R"({"full": true})"));
  check(change<DeployRequest>(
      "POST", "/v1/deployments", "",
      R"({"full": true, "operation_id": "op-1", "expected_epoch": 7, "wait": false})"));
  check(change<UndeployRequest>("DELETE", "/v1/deployments/a", query));
  check(change<DrainRequest>("POST", "/v1/workers/3/drain", query));
  check(change<DrainRequest>("POST", "/v1/workers/3/drain", "", body));
  check(change<UndrainRequest>("POST", "/v1/workers/3/undrain", "", body));
  check(change<RebalanceRequest>("POST", "/v1/rebalance", query));
  EXPECT_EQ(change<DrainRequest>("POST", "/v1/workers/3/drain").first.worker, WorkerId{3});
  EXPECT_EQ(change<UndrainRequest>("POST", "/v1/workers/2/undrain").first.worker, WorkerId{2});

  for (const char* bad : {"operation_id=", "operation_id=a/b", "expected_epoch=x",
                          "expected_epoch=-1", "expected_epoch=", "epoch=3", "wait", "wait=1"}) {
    EXPECT_EQ(error("DELETE", "/v1/deployments/a", bad), ErrorCode::kInvalidArgument) << bad;
  }
  for (const char* bad : {"[]", "{", R"({"operation_id": 3})", R"({"expected_epoch": "7"})",
                          R"({"expected_epoch": -1})", R"({"force": true})"}) {
    EXPECT_EQ(error("POST", "/v1/workers/1/drain", "", bad), ErrorCode::kInvalidArgument) << bad;
  }
}

TEST_F(AdminTest, SaysWhatRequestsDoWhileExpertsAreMissing) {
  const auto policy = [this](std::string_view body) {
    return change<DeployRequest>("POST", "/v1/deployments", "", body).first.deployment.on_missing;
  };
  EXPECT_EQ(policy(R"({"full": true})"), MissingPolicy::kWait);
  EXPECT_EQ(policy(R"({"full": true, "on_missing": "mask"})"), MissingPolicy::kMask);
  EXPECT_EQ(policy(R"({"full": true, "on_missing": "fail"})"), MissingPolicy::kFail);
  EXPECT_EQ(error("POST", "/v1/deployments", "", R"({"full": true, "on_missing": "hope"})"),
            ErrorCode::kInvalidArgument);
}

TEST_F(AdminTest, DeploysTheFullModel) {
  for (const char* body : {R"({"full": true})", R"({"full": true, "name": ""})",
                           R"({"full": true, "name": "tiny"})"}) {
    const auto [request, wait] = change<DeployRequest>("POST", "/v1/deployments", "", body);
    EXPECT_EQ(request.deployment, full_deployment()) << body;
    EXPECT_TRUE(wait);
  }
  EXPECT_EQ(change<DeployRequest>("POST", "/v1/deployments", "", R"({"full": true, "name": "all"})")
                .first.deployment.name,
            "all");
}

TEST_F(AdminTest, BadDeploymentsAreRefused) {
  const Deployment python = random_subset("python", 5, 3);
  const std::vector<std::string> bodies = {
      "",
      "[]",
      "{",
      "{}",
      R"({"name": "python"})",
      R"({"name": 3, "full": true})",
      R"({"full": "yes"})",
      R"({"full": true, "extra": 1})",
      R"({"full": true, "subset": {}})",
      R"({"name": "python", "subset": {}})",
      subset_body("", python),
      subset_body("tiny", python),
      subset_body("a/b", python),
      subset_body(std::string(65, 'a'), python),
      subset_body("python", python, "fingerprint-b"),
      subset_body("python", random_subset("python", 1, 3)),  // fewer than a token selects
  };
  for (const std::string& body : bodies) {
    EXPECT_EQ(error("POST", "/v1/deployments", "", body), ErrorCode::kInvalidArgument) << body;
  }
  EXPECT_EQ(error("POST", "/v1/deployments", "wait=maybe", R"({"full": true})"),
            ErrorCode::kInvalidArgument);
}

TEST_F(AdminTest, DeleteTakesEveryFormOfTheName) {
  const auto name = [this](std::string_view path) {
    return change<UndeployRequest>("DELETE", path).first.name;
  };
  EXPECT_EQ(name("/v1/deployments/python"), "python");
  EXPECT_EQ(name("/v1/deployments/tiny:python"), "python");
  EXPECT_EQ(name("/v1/deployments/tiny"), "");
  EXPECT_EQ(error("DELETE", "/v1/deployments/"), ErrorCode::kInvalidArgument);
  EXPECT_EQ(error("DELETE", "/v1/deployments/other:python"), ErrorCode::kInvalidArgument);
  EXPECT_FALSE(change<UndeployRequest>("DELETE", "/v1/deployments/a", "wait=false").second);
}

TEST(AdminErrors, EnvelopeNamesTheCode) {
  const json::value body =
      json::parse(error_body(fail(ErrorCode::kNotFound, "tiny:law is not \"deployed\"")));
  const json::object& error = body.at("error").as_object();
  EXPECT_EQ(error.at("message").as_string(), "tiny:law is not \"deployed\"");
  EXPECT_EQ(error.at("code").as_string(), "not_found");
  EXPECT_EQ(error.at("type").as_string(), "not_found_error");
  EXPECT_TRUE(error.at("param").is_null());
  EXPECT_TRUE(json::parse(error_body(413, "too large")).at("error").at("code").is_null());
  EXPECT_EQ(body.as_object().if_contains("epoch"), nullptr);
  const json::value conflict =
      json::parse(error_body(fail(ErrorCode::kStaleEpoch, "it is 9"), Epoch{9}));
  EXPECT_EQ(conflict.at("epoch").as_int64(), 9);
}

/// Status and metrics of a cluster that serves the full model and a subset, with one worker lost.
class StatusTest : public testing::Test {
 protected:
  StatusTest() : sim(test_config()) {
    sim.finish(sim.start({full_deployment(), random_subset("python", 4, 1)}));
    sim.add_router(7);
    sim.routers.at(0).running = {{"python", 3}};
    sim.advance(std::chrono::seconds(1));
  }
  json::value status() const {
    std::deque<Decision> decisions;
    for (std::uint64_t number = 1; number <= 30; ++number)
      decisions.push_back({number, "2026-01-01T00:00:00Z", LogLevel::kWarning, "why"});
    return json::parse(status_json(sim.status(), {"state.sqlite", true, std::nullopt}, decisions));
  }
  Simulation sim;
};

TEST_F(StatusTest, SaysWhatRuns) {
  const json::value all = status();
  EXPECT_EQ(all.at("model").as_string(), "tiny");
  EXPECT_EQ(all.at("fingerprint").as_string(), "fingerprint-a");
  EXPECT_TRUE(all.at("ready").as_bool());
  EXPECT_TRUE(all.at("not_ready").is_null());
  EXPECT_EQ(all.at("policy").as_string(), "membership");
  EXPECT_EQ(all.at("max_workers").as_int64(), 4);
  ASSERT_EQ(all.at("workers").as_array().size(), 4u);
  EXPECT_EQ(all.at("workers").at(0).at("state").as_string(), "serving");
  EXPECT_EQ(all.at("fleet").at("bytes_resident").as_int64(), 4800);
  EXPECT_EQ(all.at("fleet").at("experts_resident").as_int64(), 48);
  EXPECT_EQ(all.at("fleet").at("routed_experts").as_int64(), 48);
  ASSERT_EQ(all.at("deployments").as_array().size(), 2u);
  const json::value& python = all.at("deployments").at(1);
  EXPECT_EQ(python.at("served_as").as_string(), "tiny:python");
  EXPECT_EQ(python.at("state").as_string(), "active");
  EXPECT_EQ(python.at("experts_per_layer").at("min").as_int64(), 4);
  EXPECT_EQ(python.at("bytes").as_int64(), 1200);
  EXPECT_EQ(python.at("running").as_int64(), 3);
  EXPECT_EQ(python.at("workers").as_array().size(), 1u);
  EXPECT_EQ(all.at("routers").at(0).at("id").as_int64(), 7);
  EXPECT_EQ(all.at("routers").at(0).at("epoch").as_int64(), all.at("epoch").as_int64());
  ASSERT_EQ(all.at("groups").as_array().size(), 2u);  // both keep it; only the full model does
  EXPECT_TRUE(all.at("lost").as_array().empty());
  EXPECT_TRUE(all.at("operation").is_null());
  EXPECT_EQ(all.at("decisions").as_array().size(), 20u);
  EXPECT_EQ(all.at("decisions").at(19).at("number").as_int64(), 30);
  EXPECT_EQ(all.at("decisions").at(0).at("text").as_string(), "why");
  EXPECT_EQ(all.at("decisions").at(0).at("level").as_string(), "warning");
  EXPECT_EQ(all.at("state_file").as_string(), "state.sqlite");
  EXPECT_TRUE(all.at("restored").as_bool());
  EXPECT_TRUE(all.at("blocked").is_null());
  EXPECT_EQ(python.at("on_missing").as_string(), "wait");
}

TEST_F(StatusTest, SaysWhatIsLostAndWhom) {
  const auto python_worker =
      static_cast<std::uint32_t>(status().at("deployments").at(1).at("workers").at(0).as_int64());
  sim.crash = "exit status 1";
  sim.kill_process(WorkerId{python_worker});
  const json::value all = status();
  EXPECT_FALSE(all.at("ready").as_bool());
  EXPECT_EQ(all.at("not_ready").as_string(), "12 experts are on no worker that serves");
  ASSERT_EQ(all.at("lost").as_array().size(), 1u);
  EXPECT_EQ(all.at("lost").at(0).at("worker").as_int64(), python_worker);
  EXPECT_EQ(all.at("lost").at(0).at("deployments").as_array().size(), 2u);
  EXPECT_EQ(all.at("lost").at(0).at("experts").as_int64(), 12);
  EXPECT_EQ(all.at("deployments").at(1).at("lost_workers").as_array().size(), 1u);
}

TEST_F(StatusTest, MetricsAgree) {
  sim.crash = "exit status 1";
  sim.kill_process(WorkerId{0});
  sim.run();  // it was started again at once, and ended again
  RuntimeCounts counts;
  counts.add_persist(std::chrono::milliseconds(3));
  ClusterStatus now = sim.status();
  now.operations_ended[{OperationKind::kDeploy, false}] = 2;
  now.moved.bytes_loaded = 300;
  now.routers.emplace_back().connected = false;
  const std::string text = metrics_text(now, counts);
  EXPECT_THAT(text, HasSubstr("\nmoiety_coordinator_epoch 2\n"));
  EXPECT_THAT(text, HasSubstr("moiety_workers{state=\"serving\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("moiety_workers{state=\"lost\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("\nmoiety_fleet_expert_bytes_resident 3600\n"));
  EXPECT_THAT(text, HasSubstr("\nmoiety_deployments 2\n"));
  EXPECT_THAT(text, HasSubstr("\nmoiety_epoch_changes_total 2\n"));
  EXPECT_THAT(text, HasSubstr("\nmoiety_worker_losses_total 2\n"));
  EXPECT_THAT(text, HasSubstr("\nmoiety_worker_restarts_total 1\n"));
  EXPECT_THAT(text, HasSubstr("moiety_worker_expert_bytes{worker=\"1\"} 1200\n"));
  EXPECT_THAT(text, HasSubstr("moiety_operations_total{kind=\"deploy\",result=\"failed\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("\nmoiety_move_bytes_loaded_total 300\n"));
  EXPECT_THAT(text, HasSubstr("\nmoiety_routers 1\n"));
  EXPECT_THAT(text, HasSubstr("moiety_coordinator_persist_seconds_bucket{le=\"0.002\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("moiety_coordinator_persist_seconds_bucket{le=\"0.005\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("moiety_coordinator_decisions_total{level=\"info\"} 0\n"));
}

TEST_F(StatusTest, OperationsAreDescribed) {
  sim.routers.at(0).confirms = false;
  const OperationId deployed = sim.deploy(random_subset("german", 4, 9));
  sim.run();
  const json::value running = json::parse(operation_json(*sim.state.operation(deployed), "tiny"));
  EXPECT_EQ(running.at("state").as_string(), "running");
  EXPECT_THAT(std::string(running.at("waiting_for").as_string()), HasSubstr("router 7 to switch"));
  EXPECT_EQ(status().at("operation").at("operation_id").as_string(), running.at("operation_id"));
  sim.routers.at(0).confirms = true;
  sim.finish(deployed);
  const json::value done = json::parse(operation_json(*sim.state.operation(deployed), "tiny"));
  EXPECT_EQ(done.at("state").as_string(), "succeeded");
  EXPECT_EQ(done.at("served_as").as_string(), "tiny:german");
  EXPECT_TRUE(done.at("error").is_null());
  EXPECT_FALSE(done.at("rolled_back").as_bool());
}

}  // namespace
}  // namespace moiety::coordinator
