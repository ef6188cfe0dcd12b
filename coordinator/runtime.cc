#include "coordinator/runtime.h"

#include <chrono>
#include <ctime>
#include <utility>

#include "coordinator/metrics.h"

namespace moiety::coordinator {

using std::chrono::milliseconds;

namespace {

constexpr milliseconds kTick{50};
constexpr std::size_t kDecisionsKept = 100;

template <class... Cases>
struct Overloaded : Cases... {
  using Cases::operator()...;
};

std::string utc_now() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[32];
  return std::string(text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts));
}

http::Response json_response(int status, std::string body) {
  http::Response response;
  response.status = status;
  response.body = std::move(body);
  return response;
}

http::Response error_response(const Error& error) {
  http::Response response = json_response(error_info(error.code).http_status, error_body(error));
  if (response.status == 429) response.headers["Retry-After"] = "1";
  return response;
}

}  // namespace

std::string reachable_address(const std::string& host, std::uint16_t port) {
  if (host == "0.0.0.0") return fmt::format("127.0.0.1:{}", port);
  if (host == "::") return fmt::format("[::1]:{}", port);
  return host.find(':') == std::string::npos ? fmt::format("{}:{}", host, port)
                                             : fmt::format("[{}]:{}", host, port);
}

Runtime::Runtime(ClusterConfig config, RuntimeOptions options)
    : admin_context_{config.served_name, config.model},
      options_(std::move(options)),
      state_(config, Clock::now()) {
  info_.served_name = config.served_name;
  info_.token = config.token;
}

Runtime::~Runtime() = default;

void Runtime::post(Work work) {
  {
    const std::lock_guard lock(mutex_);
    work_.push_back(std::move(work));
  }
  wake_.notify_one();
}

void Runtime::post_event(Event event) {
  // std::function copies what it holds; messages can be large.
  auto shared = std::make_shared<Event>(std::move(event));
  post([this, shared] { handle(std::move(*shared)); });
}

void Runtime::shut_down(std::string reason) { post_event(ShutdownRequest{std::move(reason)}); }

Result<RunInfo> Runtime::open() {
  MOIETY_ASSIGN(control_, proto::ChannelServer::listen(options_.control));
  info_.control_address = reachable_address(options_.control.host, control_->port());
  fleet_ = options_.make_fleet(info_.control_address);

  http::ServerOptions admin = options_.admin;
  admin.error_body = [](int status, std::string_view message) {
    return error_body(status, message);
  };
  MOIETY_ASSIGN(
      admin_, http::Server::start(
                  admin, [this](http::Request request, std::shared_ptr<http::Responder> responder) {
                    auto call = parse_admin_call(request.method, request.path, request.query,
                                                 request.body, admin_context_);
                    if (!call) return responder->respond(error_response(call.error()));
                    post([this, call = std::move(*call), responder] { answer(call, responder); });
                  }));
  info_.admin_address = reachable_address(admin.host, admin_->port());

  control_->start({
      [this](ConnectionId connection, proto::Hello hello, std::string remote) {
        post_event(PeerHello{connection, std::move(hello), std::move(remote)});
      },
      [this](ConnectionId connection, proto::ControlMessage message) {
        post_event(PeerMessage{connection, std::move(message)});
      },
      [this](ConnectionId connection, const Error& error) {
        post_event(PeerClosed{connection, error.message});
      },
  });
  return info_;
}

Result<void> Runtime::run() {
  MOIETY_TRY(open());
  std::optional<RunFile> run_file;
  if (!options_.run_dir.empty()) {
    MOIETY_ASSIGN(RunFile written, RunFile::write(options_.run_dir, info_));
    run_file.emplace(std::move(written));
  }
  log_info("control channel on {}, admin API on http://{}", info_.control_address,
           info_.admin_address);
  first_operation_ = OperationId{++operations_};
  handle(StartRequest{first_operation_, options_.first});
  loop();
  admin_->stop(milliseconds(1000));
  if (first_error_) return *first_error_;
  return {};
}

void Runtime::loop() {
  Clock::time_point next_tick = Clock::now();
  while (!exit_) {
    std::deque<Work> work;
    {
      std::unique_lock lock(mutex_);
      wake_.wait_until(lock, next_tick, [this] { return !work_.empty(); });
      work.swap(work_);
    }
    for (Work& each : work) each();
    const Clock::time_point now = Clock::now();
    if (now < next_tick) continue;
    next_tick = now + kTick;
    for (Fleet::Exited& each : fleet_->poll(now)) {
      handle(ProcessExited{each.worker, each.incarnation, std::move(each.how)});
    }
    handle(Tick{});
  }
}

void Runtime::handle(Event event) {
  events_.push_back(std::move(event));
  if (events_.size() > 1) return;  // execute() below us: the outer call goes on with it
  while (!events_.empty()) {
    for (Action& action : state_.handle(events_.front(), Clock::now())) execute(action);
    events_.pop_front();
  }
}

void Runtime::execute(Action& action) {
  std::visit(
      Overloaded{
          [this](const StartWorker& start) {
            const auto started = fleet_->start(start.worker, start.incarnation);
            if (!started)
              handle(ProcessExited{start.worker, start.incarnation, started.error().message});
          },
          [this](const StopWorker& stop) {
            fleet_->stop(stop.worker, stop.incarnation, Clock::now());
          },
          [this](const KillWorker& kill) { fleet_->kill(kill.worker, kill.incarnation); },
          [this](const Send& send) {
            const auto sent = control_->send(send.connection, send.message);
            if (sent) return;
            record(LogLevel::kWarning,
                   "closing a connection that takes no more messages: " + sent.error().message);
            control_->close(send.connection);
          },
          [this](const CloseConnection& close) { control_->close(close.connection); },
          [this](const CompleteOperation& done) { complete(done.operation, done.error); },
          [this](Log& log) { record(log.level, std::move(log.text)); },
          [this](const Exit&) { exit_ = true; },
      },
      action);
}

void Runtime::record(LogLevel level, std::string text) {
  log_line(level, text);
  if (level == LogLevel::kDebug) return;
  decisions_.push_back({utc_now(), std::move(text)});
  if (decisions_.size() > kDecisionsKept) decisions_.pop_front();
}

void Runtime::complete(OperationId id, const std::optional<Error>& error) {
  if (id == first_operation_) {
    if (!error) return options_.on_ready(info_);
    if (error->code == ErrorCode::kCancelled) return;  // a shutdown came first
    first_error_ = error;
    return handle(ShutdownRequest{"the first deployments failed"});
  }
  const auto waiting = waiting_.find(id);
  if (waiting == waiting_.end()) return;
  const auto operation = state_.operation(id);
  waiting->second->respond(
      error || !operation
          ? error_response(error.value_or(fail(ErrorCode::kInternal, "no record of it")))
          : json_response(200, operation_json(*operation, info_.served_name)));
  waiting_.erase(waiting);
}

void Runtime::submit(Event event,
                     OperationId id,
                     bool wait,
                     std::shared_ptr<http::Responder> responder) {
  if (wait) {
    waiting_.emplace(id, std::move(responder));
  } else {
    responder->respond(json_response(202, accepted_json(id)));
  }
  handle(std::move(event));
}

void Runtime::answer(const AdminCall& call, std::shared_ptr<http::Responder> responder) {
  const auto status = [this] { return state_.status(Clock::now()); };
  std::visit(
      Overloaded{
          [&](const GetHealth&) { responder->respond(json_response(200, R"({"status":"ok"})")); },
          [&](const GetMetrics&) {
            http::Response response = json_response(200, metrics_text(status()));
            response.content_type = "text/plain; version=0.0.4";
            responder->respond(std::move(response));
          },
          [&](const GetStatus&) {
            responder->respond(json_response(200, status_json(status(), decisions_)));
          },
          [&](const GetDeployments&) {
            responder->respond(json_response(200, deployments_json(status())));
          },
          [&](const GetOperation& get) {
            const auto operation = state_.operation(get.id);
            responder->respond(
                operation ? json_response(200, operation_json(*operation, info_.served_name))
                          : error_response(fail(ErrorCode::kNotFound,
                                                fmt::format("operation {} is not known (any more)",
                                                            get.id.value))));
          },
          [&](const PostDeployment& post) {
            const OperationId id{++operations_};
            submit(DeployRequest{id, post.deployment}, id, post.wait, responder);
          },
          [&](const DeleteDeployment& remove) {
            const OperationId id{++operations_};
            submit(UndeployRequest{id, remove.name}, id, remove.wait, responder);
          },
          [&](const PostShutdown&) {
            responder->respond(json_response(202, R"({"state":"shutting_down"})"));
            handle(ShutdownRequest{"asked for by the admin API"});
          },
      },
      call);
}

}  // namespace moiety::coordinator
