#include "common/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <exception>
#include <stdexcept>
#include <string>

#include "common/check.h"

namespace moiety {
namespace {

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

std::size_t available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return static_cast<std::size_t>(std::max(1, CPU_COUNT(&set)));
}

std::size_t share_of_cores(std::size_t processes) {
  return std::max<std::size_t>(1, available_cores() / std::max<std::size_t>(1, processes));
}

ThreadPool::ThreadPool(std::size_t num_threads, Spin spin) : spins_(static_cast<int>(spin)) {
  if (num_threads == 0) num_threads = available_cores();
  try {
    threads_.reserve(num_threads - 1);
    for (std::size_t i = 1; i < num_threads; ++i) threads_.emplace_back([this, i] { work(i); });
  } catch (const std::exception&) {  // std::system_error, or no memory
    const std::size_t started = this->num_threads();
    end_threads();
    throw std::runtime_error("no more than " + std::to_string(started) + " of " +
                             std::to_string(num_threads) +
                             " compute threads can be started here: use fewer (--threads)");
  }
}

ThreadPool::~ThreadPool() { end_threads(); }

void ThreadPool::end_threads() {
  stop_ = true;
  generation_.fetch_add(1);
  generation_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::drain(std::size_t thread) {
  for (;;) {
    const std::size_t index = next_.fetch_add(1, std::memory_order_relaxed);
    if (index >= count_) return;
    task_(context_, index, thread);
  }
}

void ThreadPool::run(std::size_t count, Task task, void* context) {
  MOIETY_CHECK(busy_.load() == 0, "parallel_for is not reentrant");
  task_ = task;
  context_ = context;
  count_ = count;
  next_.store(0, std::memory_order_relaxed);
  busy_.store(threads_.size(), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  drain(0);
  for (int spin = 0;; ++spin) {
    const std::size_t left = busy_.load(std::memory_order_acquire);
    if (left == 0) return;
    if (spin < spins_) {
      pause_cpu();
    } else {
      busy_.wait(left, std::memory_order_acquire);
    }
  }
}

void ThreadPool::work(std::size_t thread) {
  std::uint32_t seen = 0;
  for (;;) {
    for (int spin = 0; generation_.load(std::memory_order_acquire) == seen; ++spin) {
      if (spin < spins_) {
        pause_cpu();
      } else {
        generation_.wait(seen, std::memory_order_acquire);
      }
    }
    ++seen;
    if (stop_) return;
    drain(thread);
    if (busy_.fetch_sub(1, std::memory_order_release) == 1) busy_.notify_one();
  }
}

}  // namespace moiety
