#include "worker/worker.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>
#include <unistd.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "common/log.h"
#include "common/signals.h"
#include "fabric/ucx/ucx_lane.h"
#include "http/server.h"
#include "proto/control_client.h"
#include "worker/lane_loop.h"

namespace moiety {
namespace {

/// Runs loads and drops one after the other, so that the control channel never waits for a disk.
class TaskThread {
 public:
  TaskThread() : thread_([this] { loop(); }) {}
  ~TaskThread() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }
  void post(std::function<void()> task) {
    {
      const std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    wake_.notify_one();
  }

 private:
  void loop() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stop_ || !tasks_.empty(); });
      if (stop_) return;
      std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      lock.lock();
    }
  }
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  bool stop_ = false;
  std::thread thread_;
};

class WorkerMetrics {
 public:
  WorkerMetrics(const ExpertStore& store, const LaneLoop& loop)
      : store_(store),
        loop_(loop),
        resident_(gauge("moiety_expert_bytes_resident", "Bytes of packed expert weights held now")),
        experts_(gauge("moiety_experts_resident", "Routed experts held now, over all layers")),
        read_(counter("moiety_expert_bytes_read_total",
                      "Bytes read from the checkpoint for experts")),
        rows_(counter("moiety_expert_rows_total", "(token, expert) pairs computed")),
        dispatches_(counter("moiety_dispatches_total", "Dispatch messages answered")) {}

  std::string scrape() {
    const std::lock_guard lock(mutex_);
    resident_.Set(static_cast<double>(store_.bytes_resident()));
    experts_.Set(static_cast<double>(store_.num_experts()));
    advance(read_, store_.bytes_read());
    advance(rows_, loop_.rows_processed());
    advance(dispatches_, loop_.dispatches());
    return prometheus::TextSerializer().Serialize(registry_.Collect());
  }

 private:
  prometheus::Gauge& gauge(const char* name, const char* help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry_).Add({});
  }
  prometheus::Counter& counter(const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry_).Add({});
  }
  static void advance(prometheus::Counter& counter, std::uint64_t value) {
    counter.Increment(static_cast<double>(value) - counter.Value());
  }

  const ExpertStore& store_;
  const LaneLoop& loop_;
  std::mutex mutex_;
  prometheus::Registry registry_;
  prometheus::Gauge& resident_;
  prometheus::Gauge& experts_;
  prometheus::Counter& read_;
  prometheus::Counter& rows_;
  prometheus::Counter& dispatches_;
};

/// What the coordinator asks for, done by the task thread.
class ControlHandler {
 public:
  ControlHandler(ExpertStore& store,
                 TaskThread& tasks,
                 std::function<proto::ControlMessage()> heartbeat,
                 std::function<void(std::string)> stop)
      : store_(store), tasks_(tasks), heartbeat_(std::move(heartbeat)), stop_(std::move(stop)) {}

  void handle(proto::ControlMessage message,
              const std::function<Result<void>(const proto::ControlMessage&)>& send) {
    if (auto* load = std::get_if<proto::LoadExperts>(&message)) {
      tasks_.post([this, load = std::move(*load), send] {
        const std::uint64_t before = store_.bytes_read();
        const auto loaded = store_.load(load.experts);
        proto::ExpertsReady ready{load.epoch, store_.bytes_read() - before, {}};
        if (!loaded) ready.error = loaded.error();
        log_info("epoch {}: {} experts, {} bytes read{}", load.epoch.value, load.experts.size(),
                 ready.bytes_read, loaded ? "" : ": " + loaded.error().message);
        // The figures first: whoever waits for the experts sees them counted.
        if (auto sent = send(heartbeat_()); !sent) log_debug("heartbeat: {}", sent.error().message);
        if (auto sent = send(ready); !sent) log_warning("experts ready: {}", sent.error().message);
      });
    } else if (auto* drop = std::get_if<proto::DropExperts>(&message)) {
      tasks_.post([this, drop = std::move(*drop), send] {
        store_.keep_only({drop.keep.begin(), drop.keep.end()});
        if (auto sent = send(heartbeat_()); !sent) log_debug("heartbeat: {}", sent.error().message);
        log_info("epoch {}: {} experts kept", drop.epoch.value, store_.num_experts());
      });
    } else if (auto* shutdown = std::get_if<proto::Shutdown>(&message)) {
      stop_(shutdown->reason);
    } else {
      log_warning("the coordinator sent a message that is not for workers");
    }
  }

 private:
  ExpertStore& store_;
  TaskThread& tasks_;
  const std::function<proto::ControlMessage()> heartbeat_;
  const std::function<void(std::string)> stop_;
};

}  // namespace

Result<void> run_worker(const WorkerOptions& options) {
  std::mutex mutex;
  LaneLoop* running_loop = nullptr;  // guarded by mutex
  bool stopped = false;              // guarded by mutex
  Result<void> outcome;
  const auto stop = [&](const std::string& why) {
    const std::lock_guard lock(mutex);
    log_info("stopping: {}", why);
    stopped = true;
    if (running_loop != nullptr) running_loop->stop();
  };
  const SignalWatcher signals([&](int) { stop("signal"); });

  MOIETY_ASSIGN(const kernels::Variant variant, kernels::choose_variant(options.kernels));
  MOIETY_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(options.model));
  ThreadPool pool(options.threads);
  ExpertStore store(checkpoint, options.expert_dtype);
  ExpertRunner runner(variant, pool);
  MOIETY_ASSIGN(
      const std::unique_ptr<fabric::WorkerPort> port,
      fabric::open_ucx_port({options.id, options.incarnation, options.token}, options.bind_host));
  LaneLoop loop(*port, store, runner, checkpoint.architecture().hidden_size, options.id,
                options.incarnation);
  WorkerMetrics metrics(store, loop);

  http::ServerOptions http_options;
  http_options.host = options.bind_host;
  http_options.port = options.http_port;
  MOIETY_ASSIGN(
      const std::unique_ptr<http::Server> server,
      http::Server::start(http_options, [&](const http::Request& request,
                                            const std::shared_ptr<http::Responder>& responder) {
        if (request.path == "/metrics") {
          responder->respond(
              {200, "text/plain; version=0.0.4; charset=utf-8", metrics.scrape(), {}});
        } else if (request.path == "/health") {
          responder->respond({200, "application/json", "{\"status\":\"ok\"}\n", {}});
        } else {
          responder->respond(
              {404, "application/json", "{\"error\":{\"message\":\"not found\"}}\n", {}});
        }
      }));

  proto::ControlClientOptions control_options;
  control_options.address = options.coordinator;
  control_options.orphan_timeout = std::chrono::seconds(options.orphan_timeout_s);
  proto::Hello& hello = control_options.hello;
  hello.role = proto::Role::kWorker;
  hello.id = options.id;
  hello.incarnation = options.incarnation;
  hello.token = options.token;
  hello.pid = ::getpid();
  hello.lane_address = port->address();
  hello.http_address = options.bind_host + ":" + std::to_string(server->port());
  hello.fingerprint = checkpoint.fingerprint();

  {
    const std::lock_guard lock(mutex);
    if (stopped) return {};
    running_loop = &loop;
  }
  {
    proto::ControlClient* control_pointer = nullptr;  // guarded by control_mutex
    std::mutex control_mutex;
    const auto send = [&](const proto::ControlMessage& message) -> Result<void> {
      const std::lock_guard lock(control_mutex);
      if (control_pointer == nullptr) return fail(ErrorCode::kUnavailable, "stopping");
      return control_pointer->send(message);
    };
    TaskThread tasks;
    const auto heartbeat = [&]() -> proto::ControlMessage {
      return proto::WorkerHeartbeat{{store.bytes_resident(), store.bytes_read(),
                                     store.num_experts(), loop.rows_processed(),
                                     loop.dispatches()}};
    };
    ControlHandler handler(store, tasks, heartbeat, stop);
    std::unique_lock starting(control_mutex);  // a reply waits until `control_pointer` is set
    proto::ControlClient control(control_options, {[&](proto::ControlMessage message) {
                                                     handler.handle(std::move(message), send);
                                                   },
                                                   heartbeat,
                                                   [&](const Error& why) {
                                                     outcome = why;
                                                     stop(why.message);
                                                   }});
    control_pointer = &control;
    starting.unlock();
    log_info("worker {} (incarnation {}) listens at {}", options.id, options.incarnation,
             port->address());
    loop.run();
    const std::lock_guard lock(control_mutex);
    control_pointer = nullptr;
  }
  const std::lock_guard lock(mutex);
  running_loop = nullptr;
  return outcome;
}

}  // namespace moiety
