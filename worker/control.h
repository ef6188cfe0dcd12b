#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "experts/store.h"
#include "proto/control_client.h"
#include "worker/lane_loop.h"
#include "worker/task_thread.h"

namespace moiety {

/// The worker's side of the control channel: says who we are and what we hold, loads and drops
/// experts on a thread of its own, and learns our id from the first Welcome where we had none.
///
/// A coordinator that goes away changes nothing here but that `on_end` is called after the orphan
/// time, if there is one. Loads that fail are told to the coordinator; what was held stays.
class WorkerControl {
 public:
  using OnEnd = std::function<void(const Result<void>& outcome, const std::string& why)>;

  /// Connects in the background. All references outlive it. `on_end` comes from another thread when
  /// the coordinator ends or refuses this worker, or was gone for too long.
  WorkerControl(proto::ControlClientOptions options,
                ExpertStore& store,
                const LaneLoop& loop,
                OnEnd on_end);
  ~WorkerControl();
  WorkerControl(const WorkerControl&) = delete;
  WorkerControl& operator=(const WorkerControl&) = delete;

  /// Waits for the id. Empty after cancel(), or when on_end came first.
  std::optional<std::uint32_t> await_id();
  void cancel();

 private:
  void complete(proto::Hello& hello);
  void welcomed(const proto::Welcome& welcome);
  void handle(proto::ControlMessage message);
  void load(const proto::LoadExperts& load);
  void drop(const proto::DropExperts& drop);
  void send(const proto::ControlMessage& message);
  proto::ControlMessage heartbeat() const;
  void end(Result<void> outcome, const std::string& why);

  ExpertStore& store_;
  const LaneLoop& loop_;
  const OnEnd on_end_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<std::uint32_t> id_;  // guarded by mutex_
  bool welcome_ = false;             // guarded by mutex_
  bool cancelled_ = false;           // guarded by mutex_
  std::mutex client_mutex_;
  proto::ControlClient* sender_ = nullptr;  // guarded by client_mutex_
  TaskThread tasks_;
  std::unique_ptr<proto::ControlClient> client_;
};

}  // namespace moiety
