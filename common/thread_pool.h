#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "common/result.h"

namespace moiety {

/// A fixed set of threads for compute loops. Indices are handed out dynamically; idle threads spin
/// for a while and then block, so that several processes can share the cores.
///
/// One caller at a time: parallel_for is not reentrant and must not be called from two threads at
/// once. Results must not depend on which thread runs an index, or kernels lose their bits.
class ThreadPool {
 public:
  /// How long a thread without work spins: between the loops of one layer, or hardly at all, where
  /// other processes wait for the core.
  enum class Spin : int { kLayer = 2000, kBrief = 300 };

  /// With the calling thread; 0: one per available core. Throws runtime_error if they cannot start.
  explicit ThreadPool(std::size_t num_threads, Spin spin = Spin::kLayer);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  std::size_t num_threads() const { return threads_.size() + 1; }

  /// Runs fn(index, thread) once for every index in [0, count); `thread` in [0, num_threads())
  /// names scratch memory. Returns when all are done. fn must not throw.
  template <class Fn>
  void parallel_for(std::size_t count, Fn&& fn) {
    if (count == 0) return;
    if (count == 1 || threads_.empty()) {
      for (std::size_t i = 0; i < count; ++i) fn(i, std::size_t{0});
      return;
    }
    run(
        count,
        [](void* context, std::size_t index, std::size_t thread) {
          (*static_cast<std::remove_reference_t<Fn>*>(context))(index, thread);
        },
        const_cast<void*>(static_cast<const void*>(&fn)));
  }

  /// The same for a fn(index) that gives a Result<void>: all of them run, and of the errors the one
  /// of the lowest index comes back.
  template <class Fn>
  Result<void> try_for(std::size_t count, Fn&& fn) {
    std::vector<std::optional<Error>> errors(count);
    parallel_for(count, [&](std::size_t index, std::size_t) {
      if (Result<void> done = fn(index); !done) errors[index] = done.error();
    });
    for (const std::optional<Error>& error : errors) {
      if (error) return *error;
    }
    return {};
  }

 private:
  using Task = void (*)(void*, std::size_t, std::size_t);
  void run(std::size_t count, Task task, void* context);
  void work(std::size_t thread);
  void drain(std::size_t thread);
  void end_threads();

  const int spins_;
  std::vector<std::thread> threads_;
  Task task_ = nullptr;
  void* context_ = nullptr;
  std::size_t count_ = 0;
  std::atomic<std::size_t> next_{0};
  std::atomic<std::size_t> busy_{0};
  std::atomic<std::uint32_t> generation_{0};
  std::atomic<bool> stop_{false};
};

/// Cores this process may run on (its affinity mask), at least 1.
std::size_t available_cores();

/// Compute threads of each of `processes` on this machine: its share of the cores, at least 1.
std::size_t share_of_cores(std::size_t processes);

}  // namespace moiety
