#include "coordinator/runtime.h"

#include <chrono>
#include <ctime>
#include <iterator>
#include <utility>

#include "common/address.h"
#include "common/check.h"
#include "common/secret.h"

namespace moiety::coordinator {

using std::chrono::milliseconds;

namespace {

constexpr milliseconds kTick{50};
constexpr milliseconds kPersistAgain{500};
constexpr std::size_t kDecisionsKept = 1000;

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

/// The request of a change, or null for another event.
const ChangeRequest* change_of(const Event& event) {
  return std::visit(
      [](const auto& each) -> const ChangeRequest* {
        if constexpr (std::is_base_of_v<ChangeRequest, std::decay_t<decltype(each)>>) return &each;
        return nullptr;
      },
      event);
}

/// Listens on the port that was used before, if it is free; else on a free one.
template <class Listen>
auto listen_again(std::uint16_t& port, std::uint16_t before, const Listen& listen) {
  if (port == 0 && before != 0) {
    port = before;
    if (auto again = listen()) return again;
    port = 0;
  }
  return listen();
}

/// Empty where there is none. `name` is in lower case.
std::string header(const http::Request& request, const std::string& name) {
  const auto found = request.headers.find(name);
  return found == request.headers.end() ? std::string() : found->second;
}

bool shows_token(const http::Request& request, const std::string& token) {
  return secrets_equal(header(request, "authorization"), "Bearer " + token);
}

}  // namespace

std::string reachable_address(const std::string& host, std::uint16_t port) {
  if (!is_wildcard(host)) return format_address(host, port);
  return format_address(host.find(':') == std::string::npos ? "127.0.0.1" : "::1", port);
}

Runtime::Runtime(ClusterConfig config, RuntimeOptions options)
    : admin_context_{config.served_name, config.model}, options_(std::move(options)) {
  info_.served_name = config.served_name;
  info_.token = config.token;
  std::optional<DurableState> restored;
  if (options_.store) {
    restored = options_.store->restored();
    runtime_status_.state_file = options_.store->file().string();
    runtime_status_.restored = restored.has_value();
  }
  state_ = std::make_unique<ClusterState>(std::move(config), Clock::now(), std::move(restored));
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

Result<void> Runtime::listen() {
  const StoreIdentity before = options_.store ? options_.store->identity() : StoreIdentity{};
  MOIETY_ASSIGN(control_, listen_again(options_.control.port, before.control_port, [this] {
                  return proto::ChannelServer::listen(options_.control);
                }));
  info_.control_address = reachable_address(options_.control.host, control_->port());

  http::ServerOptions& admin = options_.admin;
  admin.error_body = [](int status, std::string_view message) {
    return error_body(status, message);
  };
  const auto on_request = [this](const http::Request& request,
                                 const std::shared_ptr<http::Responder>& responder) {
    const bool open_to_all = request.path == "/health" || request.path == "/metrics";
    if (options_.admin_token && !open_to_all && !shows_token(request, info_.token)) {
      return responder->respond(json_response(
          401, error_body(401,
                          "the admin API needs the cluster's token: send 'Authorization: "
                          "Bearer TOKEN'; `moiety` takes it from MOIETY_TOKEN")));
    }
    // A page cannot know the token.
    if (!options_.admin_token && request.method != "GET" && request.method != "HEAD" &&
        !shows_token(request, info_.token)) {
      const auto why = may_be_from_a_page(header(request, "host"), header(request, "origin"));
      if (why) return responder->respond(json_response(403, error_body(403, *why)));
    }
    auto call =
        parse_admin_call(request.method, request.path, request.query, request.body, admin_context_);
    // The epoch of an error is the loop's to know; here only a request is wrong.
    if (!call) {
      return responder->respond(
          json_response(error_info(call.error().code).http_status, error_body(call.error())));
    }
    post([this, call = std::move(*call), responder] { answer(call, responder); });
  };
  MOIETY_ASSIGN(admin_, listen_again(admin.port, before.admin_port,
                                     [&] { return http::Server::start(admin, on_request); }));
  info_.admin_address = reachable_address(admin.host, admin_->port());
  if (!options_.store) return {};
  return options_.store->set_identity(
      {before.fingerprint, info_.token, control_->port(), admin_->port()});
}

Result<RunInfo> Runtime::open() {
  MOIETY_TRY(listen());
  fleet_ = options_.make_fleet(info_.control_address);
  // Before peers can come back: whoever has ended meanwhile is known to have.
  adopt_workers();
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

void Runtime::adopt_workers() {
  if (!runtime_status_.restored) return;
  const DurableState& restored = *options_.store->restored();
  std::size_t expected = 0;
  std::size_t found = 0;
  std::vector<Event> ended;
  for (const DurableWorker& each : restored.workers) {
    if (!each.runs && !each.ending) continue;
    ++expected;
    if (fleet_->adopt(each.id, each.incarnation, each.process)) {
      ++found;
      continue;
    }
    ended.push_back(ProcessExited{each.id, each.incarnation,
                                  "its process was gone when the coordinator came back"});
  }
  counts_.workers_adopted = found;
  record(LogLevel::kInfo,
         fmt::format("restored from {}: epoch {}, {} deployments, {} of {} worker processes are "
                     "still there",
                     runtime_status_.state_file,
                     restored.published ? restored.published->placement.epoch.value : 0,
                     restored.published ? restored.published->deployments.size() : 0, found,
                     expected));
  for (Event& event : ended) handle(std::move(event));
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
  if (options_.on_listening) options_.on_listening(info_);
  first_request_ = RequestId{++requests_};
  StartRequest start;
  start.request = first_request_;
  start.deployments = options_.first;
  handle(std::move(start));
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
    retry_persist(now);
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
    handle_one(events_.front());
    events_.pop_front();
  }
}

void Runtime::handle_one(Event& event) {
  if (std::holds_alternative<ShutdownRequest>(event)) ending_ = true;
  const ChangeRequest* change = change_of(event);
  // A restored cluster's start changes nothing.
  const bool restart =
      change != nullptr && change->request == first_request_ && runtime_status_.restored;
  if (change == nullptr || restart || !options_.store) {
    perform(state_->handle(event, Clock::now()));
    return;
  }
  const auto refuse = [&](const Error& error) {
    record(LogLevel::kError, "refused a change: " + error.message);
    complete({change->request, change->operation, error, /*refused=*/true});
  };
  if (unwritten_) return refuse(*runtime_status_.blocked);
  if (auto room = options_.store->check_room(); !room) return refuse(room.error());
  // A change that cannot be written down was never asked for.
  auto before = std::make_unique<ClusterState>(*state_);
  if (perform(state_->handle(event, Clock::now()))) return;
  state_ = std::move(before);
  unwritten_.reset();
  held_.clear();
  refuse(*std::exchange(runtime_status_.blocked, std::nullopt));
}

bool Runtime::perform(std::vector<Action> actions) {
  std::size_t first = 0;
  if (!actions.empty()) {
    if (const auto* write = std::get_if<Persist>(&actions.front()); write != nullptr) {
      first = 1;
      if (unwritten_ || !persist(*write->state)) unwritten_ = write->state;
    }
  }
  if (unwritten_ && ending_) {
    record(LogLevel::kWarning,
           "ending without a state on the disk: " + runtime_status_.blocked->message);
    unwritten_.reset();
    for (Action& each : std::exchange(held_, {})) execute(each);
  }
  if (unwritten_) {
    std::move(actions.begin() + static_cast<std::ptrdiff_t>(first), actions.end(),
              std::back_inserter(held_));
    return false;
  }
  for (std::size_t i = first; i < actions.size(); ++i) execute(actions[i]);
  return true;
}

Result<void> Runtime::persist(const DurableState& state) {
  if (!options_.store) return {};
  const Clock::time_point began = Clock::now();
  auto written = options_.store->persist(state);
  const Clock::time_point now = Clock::now();
  if (written) {
    counts_.add_persist(now - began);
    return {};
  }
  ++counts_.persist_failures;
  persist_again_at_ = now + kPersistAgain;
  if (!runtime_status_.blocked) {
    record(LogLevel::kError,
           "the state cannot be written, nothing changes until it can: " + written.error().message);
  }
  runtime_status_.blocked = with_context(
      "the coordinator's state cannot be written, so nothing was changed", written.error());
  return written;
}

void Runtime::retry_persist(Clock::time_point now) {
  if (!unwritten_ || now < persist_again_at_ || !persist(*unwritten_)) return;
  unwritten_.reset();
  runtime_status_.blocked.reset();
  record(LogLevel::kInfo, fmt::format("the state can be written again; doing the {} actions that "
                                      "waited for it",
                                      held_.size()));
  for (Action& each : std::exchange(held_, {})) execute(each);
}

void Runtime::execute(Action& action) {
  std::visit(
      Overloaded{
          [](const Persist&) { MOIETY_CHECK(false, "Persist is the first action of an event"); },
          [this](const StartWorker& start) {
            const auto started = fleet_->start(start.worker, start.incarnation);
            if (started) {
              handle(ProcessStarted{start.worker, start.incarnation, *started});
            } else {
              handle(ProcessExited{start.worker, start.incarnation, started.error().message});
            }
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
          [this](const AcceptOperation& accepted) { accept(accepted); },
          [this](const CompleteOperation& done) { complete(done); },
          [this](Log& log) { record(log.level, std::move(log.text)); },
          [this](const Exit&) { exit_ = true; },
      },
      action);
}

void Runtime::record(LogLevel level, std::string text) {
  log_line(level, text);
  if (level == LogLevel::kDebug) return;
  ++counts_.decisions[level];
  decisions_.push_back({++decision_count_, utc_now(), level, std::move(text)});
  if (decisions_.size() > kDecisionsKept) decisions_.pop_front();
}

http::Response Runtime::error_response(const Error& error) const {
  const int status = error_info(error.code).http_status;
  std::optional<Epoch> epoch;
  if (status == 409) {
    epoch = state_->published() == nullptr ? Epoch{} : state_->published()->placement.epoch;
  }
  http::Response response = json_response(status, error_body(error, epoch));
  if (status == 429) response.headers["Retry-After"] = "1";
  return response;
}

void Runtime::accept(const AcceptOperation& accepted) {
  const auto caller = callers_.find(accepted.request);
  if (caller == callers_.end() || caller->second.wait) return;
  std::exchange(caller->second.responder, nullptr)
      ->respond(json_response(202, accepted_json(accepted.operation)));
}

void Runtime::complete(const CompleteOperation& done) {
  const auto operation = state_->operation(done.operation);
  if (done.refused) ++counts_.refused_changes;
  if (done.request == first_request_) {
    if (!done.error) return options_.on_ready(info_);
    if (done.error->code == ErrorCode::kCancelled) return;  // a shutdown came first
    first_error_ = done.error;
    return handle(ShutdownRequest{"the first deployments failed"});
  }
  const auto found = callers_.find(done.request);
  if (found == callers_.end()) return;
  const Caller caller = std::move(found->second);
  callers_.erase(found);
  if (!caller.responder) return;
  caller.responder->respond(
      done.error || !operation
          ? error_response(done.error.value_or(fail(ErrorCode::kInternal, "no record of it")))
          : json_response(200, operation_json(*operation, info_.served_name)));
}

void Runtime::submit(const AdminChange& change, const std::shared_ptr<http::Responder>& responder) {
  const RequestId id{++requests_};
  callers_.emplace(id, Caller{responder, change.wait});
  std::visit(
      [this, id](auto request) {
        request.request = id;
        handle(std::move(request));
      },
      change.request);
}

void Runtime::answer(const AdminCall& call, const std::shared_ptr<http::Responder>& responder) {
  const auto status = [this] { return state_->status(Clock::now()); };
  const auto respond = [&](std::string body) {
    responder->respond(json_response(200, std::move(body)));
  };
  std::visit(
      Overloaded{
          [&](const GetHealth&) { respond(R"({"status":"ok"})"); },
          [&](const GetMetrics&) {
            http::Response response = json_response(200, metrics_text(status(), counts_));
            response.content_type = "text/plain; version=0.0.4";
            responder->respond(std::move(response));
          },
          [&](const GetStatus&) { respond(status_json(status(), runtime_status_, decisions_)); },
          [&](const GetDeployments&) { respond(deployments_json(status())); },
          [&](const GetPlacement&) { respond(placement_json(state_->published())); },
          [&](const GetDecisions& get) { respond(decisions_json(decisions_, get.after)); },
          [&](const GetOperations&) { respond(operations_json(status())); },
          [&](const GetOperation& get) {
            const auto operation = state_->operation(get.id);
            responder->respond(
                operation ? json_response(200, operation_json(*operation, info_.served_name))
                          : error_response(fail(ErrorCode::kNotFound,
                                                fmt::format("operation {} is not known (any more)",
                                                            get.id.value))));
          },
          [&](const AdminChange& change) { submit(change, responder); },
          [&](const PostShutdown&) {
            responder->respond(json_response(202, R"({"state":"shutting_down"})"));
            handle(ShutdownRequest{"asked for by the admin API"});
          },
      },
      call);
}

}  // namespace moiety::coordinator
