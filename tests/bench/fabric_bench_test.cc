#include "bench/fabric_bench.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <vector>

#include "fabric/loopback/loopback.h"
#include "tests/fabric/echo.h"

namespace moiety::bench {
namespace {

using fabric::generous;

TEST(FabricBench, CountsTheBytesOfItsMessages) {
  constexpr std::int32_t kWorkers = 3;
  fabric::LoopbackNetwork network;
  std::vector<std::unique_ptr<fabric::WorkerPort>> ports;
  std::vector<std::thread> threads;
  const auto lane = network.make_router_lane(fabric::router_identity(1));
  for (std::uint64_t id = 0; id < kWorkers; ++id) {
    ports.push_back(network.make_port(fabric::worker_identity(id)));
    threads.emplace_back([port = ports.back().get(), id] {
      const auto served = serve_stand_in(*port, id, generous());
      EXPECT_TRUE(served) << served.error().message;
    });
    ASSERT_TRUE(fabric::connect_now(*lane, ports.back()->address(), id, 1, generous()));
  }
  for (const std::int32_t tokens : {1, 7}) {
    const FabricCase what{tokens, 24, 4, 2};
    const auto measured = measure_fabric(*lane, kWorkers, what, 20);
    ASSERT_TRUE(measured) << measured.error().message;
    EXPECT_EQ(measured->layer_us.size(), 20u);
    EXPECT_GT(measured->layer_us.front(), 0);
    EXPECT_EQ(measured->bytes_sent, measured->expected_sent);
    EXPECT_EQ(measured->bytes_received, measured->expected_received);
    // Each token goes to two workers, and a row of fp32 comes back from each.
    EXPECT_EQ(measured->bytes_received, 20u * 2 * 24 * 4 * static_cast<std::uint64_t>(tokens));
  }
  dismiss_stand_ins(*lane, kWorkers);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace moiety::bench
