#include "fabric/mpi/doorbell.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <string>
#include <thread>

#include "tests/fabric/echo.h"

namespace moiety::fabric::mpi {
namespace {

std::string world() { return "doorbell-test-" + std::to_string(getpid()); }

std::unique_ptr<Doorbell> open_bell(const std::string& name, int listen_as) {
  auto bell = Doorbell::create(name, listen_as);
  EXPECT_TRUE(bell) << bell.error().message;
  return std::move(*bell);
}

/// News within the deadline; fails the test when there are none.
Doorbell::News next_news(Doorbell& bell) {
  const auto deadline = generous();
  while (Clock::now() < deadline) {
    const auto news = bell.poll(milliseconds(100));
    if (!news.empty()) {
      EXPECT_EQ(news.size(), 1u);
      return news.front();
    }
  }
  ADD_FAILURE() << "no news";
  return {};
}

/// Whether poll() returns well before its limit.
bool wakes(Doorbell& bell) {
  const auto began = Clock::now();
  EXPECT_TRUE(bell.poll(std::chrono::seconds(10)).empty());
  return Clock::now() - began < std::chrono::seconds(5);
}

TEST(Doorbell, RingsBothWaysAndTellsTheEnd) {
  const auto worker = open_bell(world(), 3);
  const auto router = open_bell(world(), -1);
  constexpr std::uint64_t kConnection = 0x0102'0304'0506'0708;
  const auto line = router->dial(3, kConnection);
  ASSERT_NE(line, Doorbell::kNoLine);
  const auto dialled = next_news(*worker);
  EXPECT_EQ(dialled.connection, kConnection);
  EXPECT_FALSE(dialled.ended);
  for (int i = 0; i < 3; ++i) {
    router->ring(line);
    EXPECT_TRUE(wakes(*worker));
    worker->ring(dialled.line);
    EXPECT_TRUE(wakes(*router));
  }
  const auto began = Clock::now();
  EXPECT_TRUE(worker->poll(milliseconds(30)).empty());
  EXPECT_GE(Clock::now() - began, milliseconds(30)) << "rings are taken once";
  router->hang_up(line);
  const auto ended = next_news(*worker);
  EXPECT_TRUE(ended.ended);
  EXPECT_EQ(ended.line, dialled.line);
  EXPECT_EQ(ended.connection, kConnection);
  worker->ring(ended.line);  // harmless
  router->ring(line);
}

TEST(Doorbell, FloodsDoNotBlock) {
  const auto worker = open_bell(world(), 3);
  const auto router = open_bell(world(), -1);
  const auto line = router->dial(3, 1);
  ASSERT_NE(line, Doorbell::kNoLine);
  for (int i = 0; i < 1'000'000; ++i) router->ring(line);
  EXPECT_EQ(next_news(*worker).connection, 1u);
}

TEST(Doorbell, NobodyListens) {
  const auto router = open_bell(world(), -1);
  EXPECT_EQ(router->dial(3, 1), Doorbell::kNoLine);
  EXPECT_EQ(open_bell("", 3)->dial(3, 1), Doorbell::kNoLine) << "a world without a name";
  const auto first = open_bell(world(), 3);
  const auto second = open_bell(world(), 3);  // the name is taken: no error
  EXPECT_NE(router->dial(3, 1), Doorbell::kNoLine);
  EXPECT_EQ(next_news(*first).connection, 1u);
}

TEST(Doorbell, Interrupts) {
  const auto bell = open_bell(world(), -1);
  bell->interrupt();
  EXPECT_TRUE(wakes(*bell));
  std::thread other([&] { bell->interrupt(); });
  EXPECT_TRUE(wakes(*bell));
  other.join();
}

}  // namespace
}  // namespace moiety::fabric::mpi
