#include "proto/control_client.h"

#include <algorithm>

#include "common/log.h"

namespace moiety::proto {
namespace {

constexpr std::chrono::milliseconds kFirstBackoff{50};
constexpr std::chrono::milliseconds kLastBackoff{1000};
/// How often the log says that there is still no connection.
constexpr std::chrono::seconds kReminder{10};

}  // namespace

ControlClient::ControlClient(ControlClientOptions options, ControlClientCallbacks callbacks)
    : options_(std::move(options)), callbacks_(std::move(callbacks)), thread_([this] { loop(); }) {}

ControlClient::~ControlClient() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  connecting_.request_stop();
  wake_.notify_all();
  thread_.join();
}

Result<void> ControlClient::send(const ControlMessage& message) {
  const std::lock_guard lock(mutex_);
  if (channel_ == nullptr) return fail(ErrorCode::kUnavailable, "no connection to the coordinator");
  return channel_->send(message);
}

Error ControlClient::converse() {
  Hello hello = options_.hello;
  if (callbacks_.complete_hello) callbacks_.complete_hello(hello);
  auto connected = Channel::connect(options_.address, hello, {.stop = connecting_.get_token()});
  if (!connected) return connected.error();
  if (callbacks_.on_welcome) callbacks_.on_welcome((*connected)->welcome());
  const std::chrono::milliseconds interval =
      std::max((*connected)->welcome().heartbeat_interval, std::chrono::milliseconds(10));
  Channel* channel = connected->get();
  {
    const std::lock_guard lock(mutex_);
    channel_ = std::move(*connected);
    closed_ = false;
  }
  log_info("connected to the coordinator at {}", options_.address);
  Error why{ErrorCode::kCancelled, "stopped"};
  channel->start({callbacks_.on_message, [this, &why](Error error) {
                    {
                      const std::lock_guard lock(mutex_);
                      closed_ = true;
                      why = std::move(error);
                    }
                    wake_.notify_all();
                  }});
  std::unique_lock lock(mutex_);
  while (!stop_ && !closed_) {
    lock.unlock();
    if (auto sent = channel->send(callbacks_.make_heartbeat()); !sent) {
      log_debug("heartbeat: {}", sent.error().message);
    }
    last_alive_ = Clock::now();
    lock.lock();
    wake_.wait_for(lock, interval, [&] { return stop_ || closed_; });
  }
  std::unique_ptr<Channel> ended = std::move(channel_);
  if (stop_) ended->close();
  lock.unlock();
  ended.reset();  // joins its thread: nobody touches `why` after this
  return why;
}

void ControlClient::loop() {
  last_alive_ = Clock::now();
  std::chrono::milliseconds backoff = kFirstBackoff;
  Clock::time_point said_at = Clock::time_point::min();
  for (;;) {
    const Clock::time_point began = Clock::now();
    const Error why = converse();
    if (Clock::now() - began > kLastBackoff) backoff = kFirstBackoff;
    std::unique_lock lock(mutex_);
    if (stop_) return;
    const bool refused = why.code != ErrorCode::kUnavailable &&
                         why.code != ErrorCode::kDeadlineExceeded &&
                         why.code != ErrorCode::kDataLoss;
    const bool too_long =
        options_.orphan_timeout.count() > 0 && Clock::now() - last_alive_ > options_.orphan_timeout;
    if (refused || too_long) {
      lock.unlock();
      callbacks_.on_orphaned(with_context("coordinator at " + options_.address, why));
      return;
    }
    // Said of each connection that ended, and now and then while there is none.
    if (last_alive_ > said_at || Clock::now() - said_at > kReminder) {
      log_warning("coordinator at {}: {}; trying again", options_.address, why.message);
      said_at = Clock::now();
    }
    wake_.wait_for(lock, backoff, [&] { return stop_; });
    if (stop_) return;
    backoff = std::min(2 * backoff, kLastBackoff);
  }
}

}  // namespace moiety::proto
