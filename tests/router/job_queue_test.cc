#include "router/job_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <memory>
#include <new>

namespace moiety {
namespace {

TEST(JobQueue, RunsEveryJob) {
  std::atomic<int> done{0};
  std::promise<void> all;
  JobQueue queue(2, 1000);
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(queue.push(1, [&] {
      if (++done == 100) all.set_value();
    }));
  }
  EXPECT_EQ(all.get_future().wait_for(std::chrono::seconds(30)), std::future_status::ready);
}

TEST(JobQueue, ALongJobHoldsUpNoOtherThread) {
  JobQueue queue(2, 1000);
  std::promise<void> release, other;
  ASSERT_TRUE(queue.push(1, [&] { release.get_future().wait(); }));
  ASSERT_TRUE(queue.push(1, [&] { other.set_value(); }));
  EXPECT_EQ(other.get_future().wait_for(std::chrono::seconds(30)), std::future_status::ready);
  release.set_value();
}

TEST(JobQueue, RefusesWhatIsTooMuchAndKeepsNothing) {
  auto kept = std::make_shared<int>(0);
  std::promise<void> begun, release;
  std::future<void> released = release.get_future();
  {
    JobQueue queue(1, 10);
    ASSERT_TRUE(queue.push(10, [&] {
      begun.set_value();
      released.wait();
    }));
    begun.get_future().wait();  // what runs no longer waits
    ASSERT_TRUE(queue.push(6, [kept] { ++*kept; }));
    EXPECT_FALSE(queue.push(5, [kept] { ++*kept; }));
    EXPECT_EQ(kept.use_count(), 2) << "what was refused is not kept";
    EXPECT_TRUE(queue.push(4, [kept] { ++*kept; }));
    std::thread releaser([&] { release.set_value(); });
    releaser.join();
  }
  EXPECT_EQ(kept.use_count(), 1);
}

TEST(JobQueue, AJobThatThrowsEndsAlone) {
  auto kept = std::make_shared<int>(0);
  std::promise<void> other;
  JobQueue queue(1, 10);
  ASSERT_TRUE(queue.push(1, [kept] { throw std::bad_alloc(); }));
  ASSERT_TRUE(queue.push(1, [&] { other.set_value(); }));
  ASSERT_EQ(other.get_future().wait_for(std::chrono::seconds(30)), std::future_status::ready);
  EXPECT_EQ(kept.use_count(), 1) << "whoever waits for it hears that it is gone";
}

}  // namespace
}  // namespace moiety
