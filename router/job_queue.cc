#include "router/job_queue.h"

#include <exception>

#include "common/log.h"

namespace moiety {

JobQueue::JobQueue(std::size_t num_threads, std::size_t max_waiting_bytes)
    : max_waiting_bytes_(max_waiting_bytes) {
  for (std::size_t i = 0; i < num_threads; ++i) threads_.emplace_back([this] { work(); });
}

JobQueue::~JobQueue() {
  std::deque<Job> dropped;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    dropped.swap(jobs_);
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool JobQueue::push(std::size_t bytes, std::function<void()> job) {
  {
    const std::lock_guard lock(mutex_);
    if (stop_ || waiting_bytes_ + bytes > max_waiting_bytes_) return false;
    waiting_bytes_ += bytes;
    jobs_.push_back({bytes, std::move(job)});
  }
  wake_.notify_one();
  return true;
}

void JobQueue::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
    if (stop_) return;
    Job job = std::move(jobs_.front());
    jobs_.pop_front();
    waiting_bytes_ -= job.bytes;
    lock.unlock();
    try {
      job.run();
    } catch (const std::exception& error) {  // out of memory
      log_error("a request of {} bytes was dropped: {}", job.bytes, error.what());
    }
    job.run = nullptr;  // what it holds goes before the lock is taken
    lock.lock();
  }
}

}  // namespace moiety
