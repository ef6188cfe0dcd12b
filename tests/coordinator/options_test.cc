#include "coordinator/options.h"

#include <gmock/gmock.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/packed_experts.h"
#include "common/file.h"
#include "coordinator/run_file.h"
#include "coordinator/runtime.h"
#include "coordinator/setup.h"

namespace moiety::coordinator {
namespace {

using testing::HasSubstr;

Result<std::optional<Options>> parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "moiety-coordinator");
  return parse_options(static_cast<int>(arguments.size()), arguments.data());
}

TEST(Options, Defaults) {
  const auto options = parse({"--model", "models/tiny"});
  ASSERT_TRUE(options && *options);
  EXPECT_EQ((*options)->workers, 4u);
  EXPECT_EQ((*options)->capacity, 0);
  EXPECT_TRUE((*options)->full);
  EXPECT_TRUE((*options)->restart_workers);
  EXPECT_EQ((*options)->dtype, DType::kBF16);
  EXPECT_EQ((*options)->placement, planner::PlacementPolicy::kMembership);
  EXPECT_EQ((*options)->listen_host, "127.0.0.1");
  EXPECT_EQ((*options)->admin_port, 8001);
}

TEST(Options, ReadsEveryKind) {
  const auto options = parse({"-m",
                              "d",
                              "--workers",
                              "8",
                              "--capacity",
                              "9",
                              "--placement",
                              "round_robin",
                              "--deploy",
                              "a=x.json,on_missing=mask",
                              "--deploy",
                              "b=y=z.json",
                              "--no-full",
                              "--listen",
                              "0.0.0.0:7000",
                              "--dtype",
                              "f32",
                              "--no-restart-workers",
                              "--admin-port",
                              "0",
                              "--threads-per-worker",
                              "3",
                              "--lease-ttl-ms",
                              "900",
                              "--fleet",
                              "static",
                              "--fabric",
                              "mpi",
                              "--replicas",
                              "2",
                              "--capacity-bytes",
                              "24GiB",
                              "--move-headroom",
                              "0.5",
                              "--state",
                              "s.sqlite"});
  ASSERT_TRUE(options && *options) << options.error().message;
  EXPECT_EQ((*options)->placement, planner::PlacementPolicy::kRoundRobin);
  ASSERT_EQ((*options)->deploy.size(), 2u);
  EXPECT_EQ((*options)->deploy[0].on_missing, MissingPolicy::kMask);
  EXPECT_EQ((*options)->deploy[0].file, "x.json");
  EXPECT_EQ((*options)->deploy[1].name, "b");
  EXPECT_EQ((*options)->deploy[1].file, "y=z.json");
  EXPECT_EQ((*options)->deploy[1].on_missing, MissingPolicy::kWait);
  EXPECT_EQ((*options)->fleet, FleetKind::kStatic);
  EXPECT_EQ((*options)->replicas, 2);
  EXPECT_EQ((*options)->capacity_bytes, std::uint64_t{24} << 30);
  EXPECT_EQ((*options)->move_headroom, 0.5);
  EXPECT_EQ((*options)->state, "s.sqlite");
  EXPECT_FALSE((*options)->full);
  EXPECT_FALSE((*options)->restart_workers);
  EXPECT_EQ((*options)->listen_host, "0.0.0.0");
  EXPECT_EQ((*options)->listen_port, 7000);
  EXPECT_EQ((*options)->admin_port, 0);
  EXPECT_EQ((*options)->dtype, DType::kF32);
  EXPECT_EQ((*options)->threads_per_worker, 3u);
}

TEST(Options, ErrorsNameTheFlag) {
  const std::vector<std::pair<std::vector<const char*>, const char*>> cases = {
      {{}, "--model"},
      {{"-m", "d", "--workers", "0"}, "--workers"},
      {{"-m", "d", "--workers", "many"}, "--workers"},
      {{"-m", "d", "--placement", "best"}, "--placement"},
      {{"-m", "d", "--deploy", "python"}, "--deploy python"},
      {{"-m", "d", "--deploy", "=file"}, "--deploy =file"},
      {{"-m", "d", "--deploy", "a=,on_missing=wait"}, "--deploy a="},
      {{"-m", "d", "--deploy", "a=f,on_missing=hope"}, "'hope'"},
      {{"-m", "d", "--fleet", "cloud"}, "--fleet"},
      {{"-m", "d", "--fabric", "mpi"}, "--fleet static"},
      {{"-m", "d", "--replicas", "0"}, "--replicas"},
      {{"-m", "d", "--move-headroom", "-1"}, "--move-headroom"},
      {{"-m", "d", "--move-headroom", "nan"}, "--move-headroom"},
      {{"-m", "d", "--capacity-bytes", "much"}, "--capacity-bytes"},
      {{"-m", "d", "--capacity-bytes", "-5"}, "--capacity-bytes"},
      {{"-m", "d", "--capacity-bytes", "-5GiB"}, "--capacity-bytes"},
      {{"-m", "d", "--listen", "7000"}, "--listen 7000"},
      {{"-m", "d", "--listen", "h:70000"}, "--listen h:70000"},
      {{"-m", "d", "--listen", "h:"}, "--listen h:"},
      {{"-m", "d", "--listen", "::1:7000"}, "in brackets"},
      {{"-m", "d", "--dtype", "f16"}, "--dtype"},
      {{"-m", "d", "--admin-port", "70000"}, "--admin-port"},
      {{"-m", "d", "--frobnicate"}, "--frobnicate"},
  };
  for (const auto& [arguments, flag] : cases) {
    const auto options = parse(arguments);
    ASSERT_FALSE(options) << flag;
    EXPECT_EQ(options.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(options.error().message, HasSubstr(flag));
    EXPECT_EQ(options.error().message.find('\n'), std::string::npos) << "one line";
  }
}

TEST(Options, HelpNamesEveryFlag) {
  testing::internal::CaptureStdout();
  const auto options = parse({"--help"});
  const std::string help = testing::internal::GetCapturedStdout();
  ASSERT_TRUE(options);
  EXPECT_FALSE(*options);
  for (const char* flag : {"--model",
                           "--served-model-name",
                           "--workers",
                           "--capacity",
                           "--placement",
                           "--deploy",
                           "--no-full",
                           "--listen",
                           "--admin-host",
                           "--admin-port",
                           "--lease-ttl-ms",
                           "--operation-timeout-s",
                           "--shutdown-grace-s",
                           "--dtype",
                           "--kernels",
                           "--threads-per-worker",
                           "--no-restart-workers",
                           "--worker-binary",
                           "--run-dir",
                           "--log-dir",
                           "--token-file",
                           "--state",
                           "--fleet",
                           "--replicas",
                           "--move-headroom",
                           "--capacity-bytes",
                           "--worker-orphan-timeout-s"}) {
    EXPECT_THAT(help, HasSubstr(flag));
  }
}

class Prepare : public testing::Test {
 protected:
  Prepare() {
    std::string name = (std::filesystem::temp_directory_path() / "moiety-prepare-XXXXXX").string();
    dir_ = ::mkdtemp(name.data());
    ::unsetenv("MOIETY_TOKEN");
  }
  ~Prepare() override {
    std::filesystem::remove_all(dir_);
    ::unsetenv("MOIETY_TOKEN");
  }
  Result<coordinator::Setup> prepared(std::vector<const char*> arguments) {
    const std::string model = std::string(MOIETY_SOURCE_DIR) + "/models/moiety-tiny-emo";
    const std::string run_dir = dir_.string();
    arguments.insert(arguments.end(), {"-m", model.c_str(), "--run-dir", run_dir.c_str(),
                                       "--worker-binary", "/bin/true"});
    const auto options = parse(arguments);
    if (!options) return options.error();
    return prepare(**options);
  }
  std::filesystem::path dir_;
};

TEST_F(Prepare, NobodyListensForOtherHostsWithoutASecret) {
  for (const auto& [flag, value] :
       {std::pair("--listen", "0.0.0.0:0"), {"--listen", "[::]:0"}, {"--admin-host", "10.1.2.3"}}) {
    const auto refused = prepared({flag, value});
    ASSERT_FALSE(refused) << flag;
    EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(refused.error().message, testing::AllOf(HasSubstr(flag), HasSubstr("MOIETY_TOKEN"),
                                                        HasSubstr("--token-file")));
    ::setenv("MOIETY_TOKEN", "secret", 1);
    const auto setup = prepared({flag, value});
    ASSERT_TRUE(setup) << setup.error().message;
    EXPECT_EQ(setup->cluster.token, "secret");
    ::unsetenv("MOIETY_TOKEN");
  }
  EXPECT_TRUE(prepared({"--listen", "127.0.0.2:0", "--admin-host", "localhost"}));
  EXPECT_TRUE(prepared({"--listen", "[::1]:0", "--admin-host", "::1"}));
}

TEST_F(Prepare, AStaticFleetHasASecretThatSomebodyKnows) {
  const auto alone = [] {
    const std::string model = std::string(MOIETY_SOURCE_DIR) + "/models/moiety-tiny-emo";
    const auto options = parse({"-m", model.c_str(), "--fleet", "static"});
    return prepare(**options);
  };
  const auto refused = alone();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(refused.error().message, HasSubstr("MOIETY_TOKEN"));
  EXPECT_TRUE(prepared({"--fleet", "static"}));  // coordinator.json names it
  ::setenv("MOIETY_TOKEN", "secret", 1);
  EXPECT_TRUE(alone());
}

TEST_F(Prepare, ASecretIsNoLongerThanPeersTake) {
  ::setenv("MOIETY_TOKEN", std::string(1024, 's').c_str(), 1);
  EXPECT_TRUE(prepared({}));
  const std::string file = (dir_ / "token").string();
  ASSERT_TRUE(write_file(file, std::string(1025, 's') + "\n"));
  const auto from_file = prepared({"--token-file", file.c_str()});
  ASSERT_FALSE(from_file);
  EXPECT_THAT(from_file.error().message, HasSubstr("--token-file " + file));
  ::setenv("MOIETY_TOKEN", std::string(1025, 's').c_str(), 1);
  const auto from_environment = prepared({});
  ASSERT_FALSE(from_environment);
  EXPECT_THAT(from_environment.error().message, HasSubstr("MOIETY_TOKEN"));
}

TEST_F(Prepare, TheStateFileKeepsTheToken) {
  {
    auto first = prepared({});
    ASSERT_TRUE(first && first->store) << first.error().message;
    EXPECT_FALSE(first->cluster.token.empty());
    ASSERT_TRUE(
        first->store->set_identity({first->cluster.model.fingerprint, first->cluster.token, 1, 2}));
    ::setenv("MOIETY_TOKEN", first->cluster.token.c_str(), 1);
  }
  const std::string token = ::getenv("MOIETY_TOKEN");
  ::unsetenv("MOIETY_TOKEN");
  {
    const auto again = prepared({});
    ASSERT_TRUE(again) << again.error().message;
    EXPECT_EQ(again->cluster.token, token);
    const auto second = prepared({});
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code, ErrorCode::kFailedPrecondition);
    EXPECT_THAT(second.error().message, HasSubstr("state.sqlite"));
  }
  ::setenv("MOIETY_TOKEN", "another", 1);
  EXPECT_EQ(prepared({})->cluster.token, "another");
}

TEST_F(Prepare, PlansCountAnExpertAsWorkersPackIt) {
  const Architecture arch =
      Checkpoint::open(std::string(MOIETY_SOURCE_DIR) + "/models/moiety-tiny-emo")->architecture();
  for (const auto& [flag, dtype] : {std::pair("bf16", DType::kBF16), {"int8", DType::kI8}}) {
    const auto setup = prepared({"--expert-dtype", flag});
    ASSERT_TRUE(setup) << setup.error().message;
    const auto& layers = setup->cluster.model.layers;
    ASSERT_EQ(layers.size(), static_cast<std::size_t>(arch.num_layers()));
    for (std::int32_t layer = 0; layer < arch.num_layers(); ++layer) {
      EXPECT_EQ(layers[static_cast<std::size_t>(layer)].expert_bytes,
                packed_expert_bytes(arch, layer, dtype));
      // int8: a byte per weight and a float per output channel, of which none is padding here.
      if (dtype == DType::kI8) {
        EXPECT_EQ(packed_expert_bytes(arch, layer, dtype),
                  static_cast<std::uint64_t>(
                      arch.expert_parameters(layer) +
                      4 * (2 * arch.layers[static_cast<std::size_t>(layer)].moe.intermediate +
                           arch.hidden_size)));
      }
    }
  }
}

TEST_F(Prepare, CapacityHoldsTheModelAndItsCopies) {
  EXPECT_EQ(prepared({"--workers", "4"})->cluster.capacity_per_layer, 16);  // of 63
  EXPECT_EQ(prepared({"--workers", "4", "--replicas", "2"})->cluster.capacity_per_layer, 32);
  EXPECT_EQ(prepared({"--workers", "2", "--replicas", "3"})->cluster.capacity_per_layer, 63);
  EXPECT_EQ(prepared({"--workers", "4", "--capacity", "20"})->cluster.capacity_per_layer, 20);
  const auto bytes = prepared({"--workers", "4", "--capacity-bytes", "1MiB"});
  EXPECT_EQ(bytes->cluster.capacity_per_layer, 0);
  EXPECT_EQ(bytes->cluster.capacity_bytes, std::uint64_t{1} << 20);
}

TEST_F(Prepare, AStaticFleetHasRoomForALostWorker) {
  EXPECT_EQ(prepared({"--workers", "3"})->cluster.move_headroom, 0.25);
  EXPECT_NEAR(prepared({"--workers", "3", "--fleet", "static"})->cluster.move_headroom, 0.55, 1e-9);
  EXPECT_EQ(prepared({"--workers", "9", "--fleet", "static"})->cluster.move_headroom, 0.25);
  EXPECT_EQ(prepared({"--workers", "3", "--fleet", "static", "--move-headroom", "0"})
                ->cluster.move_headroom,
            0);
}

TEST(ReachableAddress, ReplacesWildcards) {
  EXPECT_EQ(reachable_address("127.0.0.1", 1), "127.0.0.1:1");
  EXPECT_EQ(reachable_address("0.0.0.0", 80), "127.0.0.1:80");
  EXPECT_EQ(reachable_address("::", 80), "[::1]:80");
  EXPECT_EQ(reachable_address("fe80::1", 80), "[fe80::1]:80");
}

TEST(RunFile, OnlyItsOwnerCanReadItAndItGoesAway) {
  std::string name = (std::filesystem::temp_directory_path() / "moiety-run-XXXXXX").string();
  const std::filesystem::path dir = ::mkdtemp(name.data());
  const std::filesystem::path file = dir / "sub" / "coordinator.json";
  {
    const auto written =
        RunFile::write(dir / "sub", {"tiny", "127.0.0.1:1", "127.0.0.1:2", "secret"});
    ASSERT_TRUE(written) << written.error().message;
    struct stat info {};
    ASSERT_EQ(::stat(file.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600u);
    const auto text = read_file(file);
    ASSERT_TRUE(text);
    EXPECT_THAT(*text, testing::AllOf(HasSubstr(R"("token":"secret")"),
                                      HasSubstr(R"("admin_address":"127.0.0.1:2")"),
                                      HasSubstr(fmt::format("\"pid\":{}", ::getpid()))));
  }
  EXPECT_FALSE(std::filesystem::exists(file));
  std::filesystem::remove_all(dir);
}

}  // namespace
}  // namespace moiety::coordinator
