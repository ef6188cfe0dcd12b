#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace moiety {

/// A few threads that work through a bounded queue, first come first served: for work that would
/// hold up the HTTP server's thread. Thread-safe.
class JobQueue {
 public:
  JobQueue(std::size_t num_threads, std::size_t max_waiting_bytes);
  /// Drops the jobs that wait, and returns when those under way are done.
  ~JobQueue();
  JobQueue(const JobQueue&) = delete;
  JobQueue& operator=(const JobQueue&) = delete;

  /// Queues a job that holds on to `bytes` of input. What it throws is logged and ends that job
  /// only. False, and nothing is kept, when it and those that wait hold more than
  /// max_waiting_bytes.
  bool push(std::size_t bytes, std::function<void()> job);

 private:
  struct Job {
    std::size_t bytes;
    std::function<void()> run;
  };
  void work();

  const std::size_t max_waiting_bytes_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> jobs_;           // guarded by mutex_
  std::size_t waiting_bytes_ = 0;  // guarded by mutex_
  bool stop_ = false;              // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace moiety
