#include "common/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace moiety {
namespace {

class ThreadPoolOf : public testing::TestWithParam<std::size_t> {};
INSTANTIATE_TEST_SUITE_P(Common, ThreadPoolOf, testing::Values(1, 2, 3, 8));

TEST_P(ThreadPoolOf, RunsEveryIndexOnceUnderStress) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.num_threads(), GetParam());
  std::vector<std::atomic<int>> runs(97);
  for (int round = 0; round < 3000; ++round) {
    // Many short loops of changing length: a late thread of one loop must not touch the next.
    const std::size_t count = static_cast<std::size_t>(round) % runs.size();
    pool.parallel_for(count, [&](std::size_t index, std::size_t thread) {
      ASSERT_LT(thread, pool.num_threads());
      ASSERT_LT(index, count);
      runs[index].fetch_add(1, std::memory_order_relaxed);
    });
    for (std::size_t i = 0; i < runs.size(); ++i) {
      ASSERT_EQ(runs[i].exchange(0), i < count ? 1 : 0) << "round " << round << " index " << i;
    }
  }
}

TEST_P(ThreadPoolOf, OfErrorsThatOfTheLowestIndexComesBack) {
  ThreadPool pool(GetParam());
  std::vector<std::atomic<int>> runs(20);
  const auto run = [&](std::size_t fails_from) {
    return pool.try_for(runs.size(), [&](std::size_t index) -> Result<void> {
      ++runs[index];
      if (index < fails_from) return {};
      return fail(ErrorCode::kIo, std::to_string(index));
    });
  };
  EXPECT_TRUE(run(runs.size()));
  const Result<void> failed = run(7);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().message, "7");
  for (const auto& each : runs) EXPECT_EQ(each, 2);
}

TEST_P(ThreadPoolOf, WritesAreVisibleToTheCallerAndTheNextLoop) {
  ThreadPool pool(GetParam());
  std::vector<int> plain(1000);  // not atomic: the pool itself must order the accesses
  for (int round = 0; round < 200; ++round) {
    pool.parallel_for(plain.size(),
                      [&](std::size_t index, std::size_t) { ++plain[plain.size() - 1 - index]; });
  }
  EXPECT_EQ(std::accumulate(plain.begin(), plain.end(), 0), 200 * 1000);
}

TEST_P(ThreadPoolOf, AThreadNumberIsUsedByOneThreadAtATime) {
  ThreadPool pool(GetParam());
  std::vector<std::atomic<int>> inside(pool.num_threads());
  std::atomic<bool> shared{false};
  for (int round = 0; round < 200; ++round) {
    pool.parallel_for(50, [&](std::size_t, std::size_t thread) {
      if (inside[thread].fetch_add(1) != 0) shared = true;
      inside[thread].fetch_sub(1);
    });
  }
  EXPECT_FALSE(shared);
}

TEST(ThreadPool, StartsAndStopsWithoutWork) {
  for (int i = 0; i < 100; ++i) ThreadPool pool(4);
}

TEST(ThreadPool, ZeroMeansTheCoresOfThisProcess) {
  EXPECT_GE(available_cores(), 1u);
  EXPECT_EQ(ThreadPool(0).num_threads(), available_cores());
}

// Sanitizers need more address space than this leaves.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST(ThreadPool, ThreadsThatCannotAllStartAreEndedAndSaid) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_AS, &before), 0);
  std::size_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  // Room for some of the stacks.
  rlimit some = before;
  some.rlim_cur = pages * static_cast<rlim_t>(::sysconf(_SC_PAGESIZE)) + (256u << 20);
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &some), 0);
  std::string message;
  try {
    ThreadPool pool(1024);
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  ::setrlimit(RLIMIT_AS, &before);
  EXPECT_NE(message.find("of 1024 compute threads can be started"), std::string::npos) << message;
}
#endif

}  // namespace
}  // namespace moiety
