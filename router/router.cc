#include "router/router.h"

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <future>
#include <mutex>

#include "common/address.h"
#include "common/incarnation.h"
#include "common/log.h"
#include "common/signals.h"
#include "fabric/mpi/mpi_lane.h"
#include "fabric/ucx/ucx_lane.h"
#include "model/tokenizer.h"
#include "proto/control_client.h"
#include "router/api.h"
#include "router/cluster_moe.h"
#include "router/embedded.h"
#include "router/load_report.h"
#include "router/openai_json.h"

namespace moiety {
namespace {

// For the last frames of requests that the end of the grace period cut short.
constexpr std::chrono::seconds kFlushTime{2};

/// Lets any thread end the process's main wait.
class StopSignal {
 public:
  void stop(Result<void> outcome) {
    {
      const std::lock_guard lock(mutex_);
      if (stopped_) return;
      stopped_ = true;
      outcome_ = std::move(outcome);
    }
    wake_.notify_all();
  }
  bool stopped() {
    const std::lock_guard lock(mutex_);
    return stopped_;
  }
  Result<void> wait() {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] { return stopped_; });
    return outcome_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopped_ = false;
  Result<void> outcome_;
};

/// The control channel's side of a router in a cluster.
class ClusterControl {
 public:
  ClusterControl(const RouterOptions& options,
                 const std::string& fingerprint,
                 std::uint16_t http_port,
                 Engine& engine,
                 ClusterMoe& backend,
                 RouterMetrics& metrics,
                 StopSignal& stop)
      : engine_(engine),
        backend_(backend),
        metrics_(metrics),
        stop_(stop),
        fabric_(options.fabric) {
    proto::ControlClientOptions control;
    control.address = options.coordinator;
    control.orphan_timeout = std::chrono::seconds(options.orphan_timeout_s);
    control.hello.role = proto::Role::kRouter;
    control.hello.id = options.id;
    control.hello.incarnation = new_incarnation();
    control.hello.token = options.token;
    control.hello.pid = ::getpid();
    control.hello.http_address = format_address(options.host, http_port);
    control.hello.fingerprint = fingerprint;
    options_ = std::move(control);
  }

  /// Connects; from now on messages come and go.
  void start() {
    const std::lock_guard lock(mutex_);
    client_ = std::make_unique<proto::ControlClient>(
        options_,
        proto::ControlClientCallbacks{
            .on_message = [this](proto::ControlMessage message) { handle(std::move(message)); },
            .make_heartbeat =
                [this] {
                  report_load();
                  return heartbeat();
                },
            .complete_hello = [this](proto::Hello& hello) { complete(hello); },
            .on_welcome = [this](const proto::Welcome& welcome) { welcomed(welcome); },
            .on_orphaned = [this](const Error& why) { stop_.stop(why); }});
  }

  /// No message is sent or handled after this.
  void close() {
    std::unique_ptr<proto::ControlClient> client;
    {
      const std::lock_guard lock(mutex_);
      client = std::move(client_);
    }
  }

  /// False: there is no connection now.
  bool send(const proto::ControlMessage& message) {
    const std::lock_guard lock(mutex_);
    if (client_ == nullptr) return false;
    auto sent = client_->send(message);
    if (!sent) log_warning("to the coordinator: {}", sent.error().message);
    return sent.has_value();
  }

  /// Experts that this router shall hold cannot be read. One that serves goes on as before; one
  /// that cannot even begin ends, so that whoever started it hears why.
  void cannot_hold(Epoch epoch, const Error& why) {
    const std::lock_guard lock(mutex_);
    if (client_ == nullptr) return;  // the end: there may be no engine any more
    if (engine_.epoch().value == 0) return stop_.stop(why);
    if (auto sent = client_->send(proto::EpochActive{epoch, {}, why.message}); !sent)
      log_warning("to the coordinator: {}", sent.error().message);
  }

 private:
  /// Says who we are since the first Welcome, and what we serve: the coordinator may be another
  /// one.
  void complete(proto::Hello& hello) {
    hello.epoch = engine_.epoch();
    if (assigned_id_) hello.id = *assigned_id_;
  }

  /// Workers know a router by the id that the coordinator gave it, so the lane opens under that.
  void welcomed(const proto::Welcome& welcome) {
    if (assigned_id_) {
      if (*assigned_id_ != welcome.assigned_id)
        log_warning("the coordinator calls this router {} now; to workers it stays router {}",
                    welcome.assigned_id, *assigned_id_);
      return;
    }
    assigned_id_ = welcome.assigned_id;
    log_info("this is router {}", *assigned_id_);
    const fabric::LaneIdentity identity{*assigned_id_, 0, options_.hello.token};
    auto lane = fabric_ == "mpi" ? fabric::open_mpi_router_lane(identity)
                                 : fabric::open_ucx_router_lane(identity);
    if (!lane) {
      lane_failed_ = true;
      return stop_.stop(lane.error());
    }
    backend_.attach(std::move(*lane), *assigned_id_);
  }

  void handle(proto::ControlMessage message) {
    if (lane_failed_) return;  // the process is about to end
    if (auto* publish = std::get_if<proto::PublishEpoch>(&message)) {
      engine_.apply(std::move(publish->view), [this](Epoch epoch, std::vector<WorkerId> lost) {
        send(proto::EpochActive{epoch, std::move(lost)});
        send(heartbeat());  // the counts by deployment, as of this epoch
      });
    } else if (auto* shutdown = std::get_if<proto::Shutdown>(&message)) {
      log_info("stopping: {}", shutdown->reason);
      stop_.stop({});
    } else {
      log_warning("the coordinator sent a message that is not for routers");
    }
  }

  /// Of the client's thread, with each heartbeat.
  void report_load() {
    const Clock::time_point now = Clock::now();
    if (!load_report_.due(now)) return;
    LoadReport::Counts totals = metrics_.expert_tokens();
    LoadReport::Counts news = load_report_.since_last(totals);
    if (!news.empty() && send(proto::ExpertLoad{std::move(news)}))
      load_report_.sent(std::move(totals), now);
  }

  proto::ControlMessage heartbeat() {
    const Engine::Load load = engine_.load();
    return proto::RouterHeartbeat{
        {load.epoch, load.running, load.waiting, load.parked, load.per_deployment,
         metrics_.requests_total(), metrics_.prompt_tokens_total(),
         metrics_.generation_tokens_total(), load.held.experts, load.held.bytes}};
  }

  Engine& engine_;
  ClusterMoe& backend_;
  RouterMetrics& metrics_;
  StopSignal& stop_;
  const std::string fabric_;
  std::optional<std::uint32_t> assigned_id_;  // of the client's thread
  std::atomic<bool> lane_failed_{false};
  LoadReport load_report_;  // of the client's thread
  proto::ControlClientOptions options_;
  std::mutex mutex_;
  std::unique_ptr<proto::ControlClient> client_;  // guarded by mutex_
};

/// Says at the start what will be refused later.
void warn_of_small_cache(const Engine& engine) {
  const Architecture& arch = engine.model().architecture();
  const std::int64_t fits = engine.kv_cache_tokens();
  if (fits >= arch.max_positions) return;
  log_warning(
      "the KV cache holds {} tokens, the model's context is {}: longer requests will be refused "
      "(--kv-cache-bytes {} holds one full context)",
      fits, arch.max_positions,
      KvCache::block_bytes(arch, engine.model().dtype()) *
          static_cast<std::size_t>(KvCache::blocks_for(arch.max_positions)));
}

Result<ApiOptions> api_options(const RouterOptions& options, const std::string& served_name) {
  ApiOptions api;
  api.served_name = served_name;
  api.request_timeout = std::chrono::seconds(options.request_timeout_s);
  if (options.generation_config) {
    MOIETY_ASSIGN(api.defaults, GenerationDefaults::load(options.model));
  }
  static constexpr std::string_view kRemedy =
      "start the server with --chat-template FILE, or send a prompt to /v1/completions";
  if (!options.chat_template.empty()) {
    MOIETY_ASSIGN(api.chat.chat_template,
                  ChatTemplate::load_file(options.chat_template, options.model));
    return api;
  }
  const auto load = [&](std::string_view name, std::string_view what) {
    ApiOptions::Chat chat;
    auto loaded = ChatTemplate::load(options.model, name);
    if (loaded) {
      chat.chat_template = std::move(*loaded);
    } else {  // completions go without
      log_warning("no chat{}: {}", what, loaded.error().message);
      chat.missing = fmt::format("this model's chat template is not understood ({}): {}",
                                 loaded.error().message, kRemedy);
    }
    return chat;
  };
  api.chat = load("default", "");
  if (!api.chat.chat_template && api.chat.missing.empty()) {
    api.chat.missing = fmt::format(
        "this model has no chat template: its folder has no chat_template.jinja or "
        "chat_template.json, and tokenizer_config.json has no chat_template: {}",
        kRemedy);
  }
  // As transformers: what is called tool_use is for conversations with tools.
  ApiOptions::Chat tool_chat = load("tool_use", " with tools");
  if (tool_chat.chat_template || !tool_chat.missing.empty()) api.tool_chat = std::move(tool_chat);
  return api;
}

}  // namespace

Result<void> run_router(const RouterOptions& options,
                        const std::function<void(std::uint16_t)>& on_listening) {
  StopSignal stop;
  const SignalWatcher signals([&](int) { stop.stop({}); });
  if (!options.coordinator.empty() && options.fabric == "mpi") MOIETY_TRY(fabric::join_mpi_world());
  MOIETY_ASSIGN(const kernels::Variant variant, kernels::choose_variant(options.kernels));
  MOIETY_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(options.model));
  MOIETY_ASSIGN(const Tokenizer tokenizer, Tokenizer::load(options.model));
  ThreadPool pool(options.threads);
  MOIETY_ASSIGN(const std::unique_ptr<Model> model,
                Model::load(checkpoint, options.dtype, variant, pool));
  const std::string served_name =
      options.served_name.empty()
          ? std::filesystem::absolute(options.model / "x").parent_path().filename().string()
          : options.served_name;
  MOIETY_ASSIGN(ApiOptions chosen_api_options, api_options(options, served_name));
  RouterMetrics metrics(checkpoint.architecture(), served_name, options.expert_metrics);

  const bool embedded = options.coordinator.empty();
  MOIETY_ASSIGN(const DType expert_dtype, expert_dtype_for(options.dtype, options.expert_dtype));
  ExpertStore store(checkpoint, expert_dtype);
  EpochView local_view;
  std::unique_ptr<ClusterControl> control;  // outlives engine and backend, which call it
  std::unique_ptr<StepBackend> backend;
  ClusterMoe* cluster_backend = nullptr;
  if (embedded) {
    MOIETY_ASSIGN(local_view, embedded_view(model_shape(checkpoint, expert_dtype), options.full,
                                            options.deployments));
    MOIETY_TRY(store.load(needed_experts(local_view)));
    backend = std::make_unique<LocalMoe>(store, variant, pool);
  } else {
    ClusterMoeOptions cluster;
    cluster.combine = options.combine;
    cluster.dtype = options.dtype;
    cluster.reply.cap = std::chrono::milliseconds(options.reply_timeout_ms);
    cluster.reply.floor = std::chrono::milliseconds(options.least_reply_timeout_ms);
    cluster.reply.hedge_floor = std::chrono::milliseconds(options.hedge_after_ms);
    cluster.local = LocalExpertOptions{
        &checkpoint, expert_dtype, variant, &pool,
        [&control](Epoch epoch, const Error& why) { control->cannot_hold(epoch, why); }};
    auto moe = std::make_unique<ClusterMoe>(
        nullptr, cluster,
        [&control](WorkerId worker, std::uint64_t incarnation, const std::string& why) {
          control->send(proto::WorkerSuspect{worker, incarnation, why});
        });
    cluster_backend = moe.get();
    backend = std::move(moe);
  }
  auto engine = std::make_unique<Engine>(*model, *backend, options.engine, &metrics);
  warn_of_small_cache(*engine);
  if (embedded) {  // who hears that we listen may ask at once
    std::promise<void> active;
    engine->apply(std::move(local_view),
                  [&active](Epoch, const std::vector<WorkerId>&) { active.set_value(); });
    active.get_future().wait();
  }

  auto api = std::make_unique<Api>(*engine, tokenizer, metrics, std::move(chosen_api_options));
  http::ServerOptions http_options;
  http_options.host = options.host;
  http_options.port = options.port;
  http_options.error_body = http_error_body;
  MOIETY_ASSIGN(const std::unique_ptr<http::Server> server,
                http::Server::start(http_options, api->handler()));
  if (!embedded) {
    control = std::make_unique<ClusterControl>(options, checkpoint.fingerprint(), server->port(),
                                               *engine, *cluster_backend, metrics, stop);
    control->start();
  }
  log_info("serving {} at http://{}{}", served_name, format_address(options.host, server->port()),
           embedded ? ", embedded" : "");
  if (on_listening) on_listening(server->port());
  const Result<void> outcome = stop.wait();
  const std::chrono::seconds grace(options.stop_grace_s);
  engine->drain(Clock::now() + grace);
  server->stop(grace + kFlushTime);
  if (control != nullptr) control->close();
  api.reset();     // its threads use the engine
  engine.reset();  // its callbacks answer through the server
  return outcome;
}

}  // namespace moiety
