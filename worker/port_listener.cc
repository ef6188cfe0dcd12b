#include "worker/port_listener.h"

#include <chrono>
#include <utility>

namespace moiety {

std::uint64_t now_ns() {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch())
          .count());
}

PortListener::PortListener(fabric::WorkerPort& port) : port_(port), thread_([this] { loop(); }) {}

PortListener::~PortListener() {
  {
    const std::lock_guard lock(mutex_);
    state_ = State::kStopped;
  }
  changed_.notify_all();
  thread_.join();
}

void PortListener::begin() {
  {
    const std::lock_guard lock(mutex_);
    state_ = State::kListening;
  }
  changed_.notify_all();
}

std::vector<Arrival> PortListener::end() {
  std::unique_lock lock(mutex_);
  state_ = State::kEnding;
  port_.interrupt();
  changed_.wait(lock, [&] { return state_ == State::kIdle; });
  return std::exchange(arrivals_, {});
}

void PortListener::loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return state_ != State::kIdle; });
    if (state_ == State::kStopped) return;
    lock.unlock();
    listen();
    lock.lock();
    state_ = State::kIdle;
    changed_.notify_all();
  }
}

/// Until end() interrupts. An interrupt of somebody else before that is swallowed.
void PortListener::listen() {
  for (;;) {
    fabric::Event event = port_.wait(Clock::now() + std::chrono::seconds(1));
    if (event.type == fabric::Event::Type::kTimeout) continue;
    if (event.type == fabric::Event::Type::kInterrupted) {
      const std::lock_guard lock(mutex_);
      if (state_ == State::kEnding) return;
      continue;
    }
    arrivals_.push_back({std::move(event), now_ns()});
  }
}

}  // namespace moiety
