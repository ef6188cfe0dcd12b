#include "worker/control.h"

#include <fmt/format.h>

#include "common/log.h"

namespace moiety {

WorkerControl::WorkerControl(proto::ControlClientOptions options,
                             ExpertStore& store,
                             const LaneLoop& loop,
                             OnEnd on_end)
    : store_(store), loop_(loop), on_end_(std::move(on_end)), id_(options.hello.id) {
  const std::lock_guard starting(client_mutex_);  // an answer waits until `sender_` is set
  client_ = std::make_unique<proto::ControlClient>(
      std::move(options),
      proto::ControlClientCallbacks{
          .on_message = [this](proto::ControlMessage message) { handle(std::move(message)); },
          .make_heartbeat = [this] { return heartbeat(); },
          .complete_hello = [this](proto::Hello& hello) { complete(hello); },
          .on_welcome = [this](const proto::Welcome& welcome) { welcomed(welcome); },
          .on_orphaned = [this](const Error& why) { end(why, why.message); }});
  sender_ = client_.get();
}

WorkerControl::~WorkerControl() {
  {
    const std::lock_guard lock(client_mutex_);
    sender_ = nullptr;
  }
  client_.reset();
}

std::optional<std::uint32_t> WorkerControl::await_id() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return cancelled_ || welcome_; });
  return welcome_ ? id_ : std::nullopt;
}

void WorkerControl::cancel() {
  const std::lock_guard lock(mutex_);
  cancelled_ = true;
  changed_.notify_all();
}

void WorkerControl::end(Result<void> outcome, const std::string& why) {
  on_end_(outcome, why);
  cancel();
}

void WorkerControl::complete(proto::Hello& hello) {
  hello.resident = store_.resident();
  const std::lock_guard lock(mutex_);
  hello.id = id_;
}

void WorkerControl::welcomed(const proto::Welcome& welcome) {
  std::unique_lock lock(mutex_);
  if (id_ && *id_ != welcome.assigned_id) {
    const std::string why = fmt::format("this is worker {}, but the coordinator calls it worker {}",
                                        *id_, welcome.assigned_id);
    lock.unlock();
    end(fail(ErrorCode::kFailedPrecondition, why), why);
    return;
  }
  id_ = welcome.assigned_id;
  welcome_ = true;
  changed_.notify_all();
}

void WorkerControl::send(const proto::ControlMessage& message) {
  const std::lock_guard lock(client_mutex_);
  if (sender_ == nullptr) return;
  if (auto sent = sender_->send(message); !sent)
    log_debug("to the coordinator: {}", sent.error().message);
}

proto::ControlMessage WorkerControl::heartbeat() const {
  const LaneLoop::Counters counters = loop_.counters();
  return proto::WorkerHeartbeat{{store_.bytes_resident(), store_.bytes_read(), store_.num_experts(),
                                 counters.pairs, counters.dispatches}};
}

void WorkerControl::handle(proto::ControlMessage message) {
  if (auto* wanted = std::get_if<proto::LoadExperts>(&message)) {
    tasks_.post([this, wanted = std::move(*wanted)] { load(wanted); });
  } else if (auto* kept = std::get_if<proto::DropExperts>(&message)) {
    tasks_.post([this, kept = std::move(*kept)] { drop(kept); });
  } else if (auto* shutdown = std::get_if<proto::Shutdown>(&message)) {
    end({}, shutdown->reason);
  } else {
    log_warning("the coordinator sent a message that is not for workers");
  }
}

void WorkerControl::load(const proto::LoadExperts& load) {
  const std::uint64_t before = store_.bytes_read();
  const auto loaded = store_.load(load.experts);
  proto::ExpertsReady ready{load.epoch, store_.bytes_read() - before, {}};
  if (loaded) {
    log_info("epoch {}: {} experts, {} bytes read", load.epoch.value, load.experts.size(),
             ready.bytes_read);
  } else {
    ready.error = loaded.error();
    log_error("epoch {}: {} experts cannot be loaded, what was held stays: {}", load.epoch.value,
              load.experts.size(), loaded.error().message);
  }
  // The figures first: whoever waits for the experts sees them counted.
  send(heartbeat());
  send(ready);
}

void WorkerControl::drop(const proto::DropExperts& drop) {
  store_.keep_only({drop.keep.begin(), drop.keep.end()});
  send(heartbeat());
  log_info("epoch {}: {} experts kept", drop.epoch.value, store_.num_experts());
}

}  // namespace moiety
