#include "coordinator/options.h"

#include <gmock/gmock.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "common/file.h"
#include "coordinator/run_file.h"
#include "coordinator/runtime.h"

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
                              "a=x.json",
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
                              "900"});
  ASSERT_TRUE(options && *options) << options.error().message;
  EXPECT_EQ((*options)->placement, planner::PlacementPolicy::kRoundRobin);
  ASSERT_EQ((*options)->deploy.size(), 2u);
  EXPECT_EQ((*options)->deploy[1].first, "b");
  EXPECT_EQ((*options)->deploy[1].second, "y=z.json");
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
      {{"-m", "d", "--listen", "7000"}, "--listen 7000"},
      {{"-m", "d", "--listen", "h:70000"}, "--listen h:70000"},
      {{"-m", "d", "--listen", "h:"}, "--listen h:"},
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
                           "--token-file"}) {
    EXPECT_THAT(help, HasSubstr(flag));
  }
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
