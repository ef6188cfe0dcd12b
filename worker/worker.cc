#include "worker/worker.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <mutex>

#include "common/address.h"
#include "common/incarnation.h"
#include "common/log.h"
#include "common/signals.h"
#include "fabric/mpi/mpi_lane.h"
#include "fabric/ucx/ucx_lane.h"
#include "http/server.h"
#include "worker/control.h"
#include "worker/lane_loop.h"
#include "worker/metrics.h"

namespace moiety {
namespace {

/// Ends the lane loop, or keeps it from beginning.
class Stop {
 public:
  /// `loop` and `control` are told to end now if somebody has asked for it, or when somebody does.
  void watch(LaneLoop* loop, WorkerControl* control) {
    const std::lock_guard lock(mutex_);
    loop_ = loop;
    control_ = control;
    if (stopped_) tell();
  }
  void stop(const std::string& why, const Result<void>& outcome = {}) {
    const std::lock_guard lock(mutex_);
    log_info("stopping: {}", why);
    if (!stopped_) outcome_ = outcome;
    stopped_ = true;
    tell();
  }
  Result<void> outcome() {
    const std::lock_guard lock(mutex_);
    return outcome_;
  }

 private:
  void tell() {
    if (loop_ != nullptr) loop_->stop();
    if (control_ != nullptr) control_->cancel();
  }

  std::mutex mutex_;
  LaneLoop* loop_ = nullptr;          // guarded by mutex_
  WorkerControl* control_ = nullptr;  // guarded by mutex_
  bool stopped_ = false;              // guarded by mutex_
  Result<void> outcome_;              // guarded by mutex_
};

Result<std::unique_ptr<fabric::WorkerPort>> open_port(const WorkerOptions& options,
                                                      const fabric::LaneIdentity& identity) {
  if (options.fabric == "mpi") return fabric::open_mpi_port(identity);
  return fabric::open_ucx_port(identity, options.bind_host);
}

Result<std::unique_ptr<http::Server>> serve_http(const WorkerOptions& options,
                                                 WorkerMetrics& metrics) {
  http::ServerOptions http_options;
  http_options.host = options.bind_host;
  http_options.port = options.http_port;
  return http::Server::start(http_options, [&metrics](
                                               const http::Request& request,
                                               const std::shared_ptr<http::Responder>& responder) {
    if (request.path == "/metrics") {
      responder->respond({200, "text/plain; version=0.0.4; charset=utf-8", metrics.scrape(), {}});
    } else if (request.path == "/health") {
      responder->respond({200, "application/json", "{\"status\":\"ok\"}\n", {}});
    } else {
      responder->respond(
          {404, "application/json", "{\"error\":{\"message\":\"not found\"}}\n", {}});
    }
  });
}

}  // namespace

Result<void> run_worker(const WorkerOptions& options) {
  Stop stop;
  const SignalWatcher signals([&](int) { stop.stop("signal"); });

  if (options.fabric == "mpi") MOIETY_TRY(fabric::join_mpi_world());
  const std::uint64_t incarnation = options.incarnation.value_or(new_incarnation());
  MOIETY_ASSIGN(const kernels::Variant variant, kernels::choose_variant(options.kernels));
  MOIETY_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(options.model));
  ThreadPool pool(options.threads, ThreadPool::Spin::kBrief);
  ExpertStore store(checkpoint, options.expert_dtype);
  ExpertRunner runner(variant, pool);
  MOIETY_ASSIGN(const std::unique_ptr<fabric::WorkerPort> port,
                open_port(options, {options.id.value_or(0), incarnation, options.token}));
  LaneLoop loop(*port, store, runner, checkpoint.architecture().hidden_size, options.id.value_or(0),
                incarnation);
  WorkerMetrics metrics(store, loop);
  MOIETY_ASSIGN(const std::unique_ptr<http::Server> server, serve_http(options, metrics));

  proto::ControlClientOptions control_options;
  control_options.address = options.coordinator;
  control_options.orphan_timeout = std::chrono::seconds(options.orphan_timeout_s);
  proto::Hello& hello = control_options.hello;
  hello.role = proto::Role::kWorker;
  hello.id = options.id;
  hello.incarnation = incarnation;
  hello.token = options.token;
  hello.pid = ::getpid();
  hello.lane_address = port->address();
  hello.http_address = format_address(options.bind_host, server->port());
  hello.fingerprint = checkpoint.fingerprint();
  hello.capacity_bytes = options.capacity_bytes;
  {
    WorkerControl control(
        std::move(control_options), store, loop,
        [&](const Result<void>& outcome, const std::string& why) { stop.stop(why, outcome); });
    stop.watch(&loop, &control);
    if (const auto assigned = control.await_id()) {
      port->set_identity({*assigned, incarnation, options.token});
      loop.set_worker_id(*assigned);
      log_info("worker {} (incarnation {}) listens at {}", *assigned, incarnation, port->address());
      loop.run();
    }
    stop.watch(nullptr, nullptr);
  }
  return stop.outcome();
}

}  // namespace moiety
