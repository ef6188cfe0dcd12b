#include "proto/convert.h"

#include <fmt/format.h>

#include "proto/moiety.pb.h"

namespace moiety::proto {
namespace {

Error damaged(std::string what) {
  return fail(ErrorCode::kDataLoss, "a control message is damaged: " + what);
}

// To the wire. Values were validated before.

std::string cut(const std::string& text) { return text.substr(0, kMaxTextBytes); }

void put(const Error& error, wire::Error& out) {
  out.set_code(std::string(error_info(error.code).name));
  out.set_message(cut(error.message));
}

void put(const std::vector<ExpertId>& experts,
         google::protobuf::RepeatedPtrField<wire::LayerExperts>& out) {
  for (const ExpertId& id : experts) {
    if (out.empty() || out.rbegin()->layer() != id.layer) out.Add()->set_layer(id.layer);
    out.rbegin()->add_experts(id.expert);
  }
}

void put(const Hello& hello, wire::Control& control) {
  wire::Hello& out = *control.mutable_hello();
  out.set_protocol_version(hello.protocol_version);
  out.set_role(static_cast<wire::Hello::Role>(hello.role));
  if (hello.id) out.set_id(*hello.id);
  out.set_incarnation(hello.incarnation);
  out.set_token(hello.token);
  out.set_pid(hello.pid);
  out.set_build(hello.build);
  out.set_lane_address(hello.lane_address);
  out.set_http_address(hello.http_address);
  out.set_fingerprint(hello.fingerprint);
  out.set_capacity_bytes(hello.capacity_bytes);
  put(hello.resident, *out.mutable_resident());
  out.set_epoch(hello.epoch.value);
}

void put(const Welcome& welcome, wire::Control& control) {
  wire::Welcome& out = *control.mutable_welcome();
  out.set_coordinator_instance(welcome.coordinator_instance);
  out.set_assigned_id(welcome.assigned_id);
  out.set_lease_ttl_ms(static_cast<std::uint64_t>(welcome.lease_ttl.count()));
  out.set_heartbeat_interval_ms(static_cast<std::uint64_t>(welcome.heartbeat_interval.count()));
}

void put(const Refuse& refuse, wire::Control& control) {
  put(refuse.error, *control.mutable_refuse()->mutable_error());
}

void put(const WorkerHeartbeat& heartbeat, wire::Control& control) {
  const WorkerStats& stats = heartbeat.stats;
  wire::WorkerHeartbeat& out = *control.mutable_worker_heartbeat();
  out.set_bytes_resident(stats.bytes_resident);
  out.set_bytes_read(stats.bytes_read);
  out.set_experts_resident(stats.experts_resident);
  out.set_rows_processed(stats.rows_processed);
  out.set_dispatches(stats.dispatches);
}

void put(const LoadExperts& load, wire::Control& control) {
  control.mutable_load_experts()->set_epoch(load.epoch.value);
  put(load.experts, *control.mutable_load_experts()->mutable_experts());
}

void put(const ExpertsReady& ready, wire::Control& control) {
  wire::ExpertsReady& out = *control.mutable_experts_ready();
  out.set_epoch(ready.epoch.value);
  out.set_bytes_read(ready.bytes_read);
  if (ready.error) put(*ready.error, *out.mutable_error());
}

void put(const DropExperts& drop, wire::Control& control) {
  control.mutable_drop_experts()->set_epoch(drop.epoch.value);
  put(drop.keep, *control.mutable_drop_experts()->mutable_keep());
}

void put(const Shutdown& shutdown, wire::Control& control) {
  control.mutable_shutdown()->set_reason(cut(shutdown.reason));
}

void put(const PublishEpoch& publish, wire::Control& control) {
  const EpochView& view = publish.view;
  wire::PublishEpoch& out = *control.mutable_publish_epoch();
  out.set_epoch(view.placement.epoch.value);
  for (const auto& layer : view.placement.owners) {
    wire::LayerOwners& layer_out = *out.add_placement();
    for (const auto& owners : layer) {
      layer_out.add_num_owners(static_cast<std::uint32_t>(owners.size()));
      for (WorkerId owner : owners) layer_out.add_owners(owner.value);
    }
  }
  put(view.placement.router_experts, *out.mutable_router_experts());
  for (const WorkerEndpoint& worker : view.workers) {
    wire::WorkerEndpoint& worker_out = *out.add_workers();
    worker_out.set_id(worker.id.value);
    worker_out.set_incarnation(worker.incarnation);
    worker_out.set_lane_address(worker.lane_address);
  }
  for (const Deployment& deployment : view.deployments) {
    wire::Deployment& deployment_out = *out.add_deployments();
    deployment_out.set_name(deployment.name);
    deployment_out.set_full(deployment.kept.full);
    deployment_out.set_draining(deployment.draining);
    deployment_out.set_on_missing(
        static_cast<wire::Deployment::MissingPolicy>(deployment.on_missing));
    for (const auto& layer : deployment.kept.layers) {
      deployment_out.add_kept()->mutable_experts()->Add(layer.begin(), layer.end());
    }
  }
}

void put(const EpochActive& active, wire::Control& control) {
  wire::EpochActive& out = *control.mutable_epoch_active();
  out.set_epoch(active.epoch.value);
  for (WorkerId worker : active.lost_workers) out.add_lost_workers(worker.value);
  out.set_problem(cut(active.problem));
}

void put(const RouterHeartbeat& heartbeat, wire::Control& control) {
  const RouterStats& stats = heartbeat.stats;
  wire::RouterHeartbeat& out = *control.mutable_router_heartbeat();
  out.set_epoch(stats.epoch.value);
  out.set_running(stats.running);
  out.set_waiting(stats.waiting);
  out.set_parked(stats.parked);
  for (const auto& [name, running] : stats.running_per_deployment) {
    wire::DeploymentLoad& load = *out.add_running_per_deployment();
    load.set_name(name);
    load.set_running(running);
  }
  out.set_requests_total(stats.requests_total);
  out.set_prompt_tokens_total(stats.prompt_tokens_total);
  out.set_generation_tokens_total(stats.generation_tokens_total);
  out.set_experts_resident(stats.experts_resident);
  out.set_bytes_resident(stats.bytes_resident);
}

void put(const WorkerSuspect& suspect, wire::Control& control) {
  wire::WorkerSuspect& out = *control.mutable_worker_suspect();
  out.set_worker(suspect.worker.value);
  out.set_incarnation(suspect.incarnation);
  out.set_reason(cut(suspect.reason));
}

void put(const ExpertLoad& load, wire::Control& control) {
  wire::ExpertLoad& out = *control.mutable_expert_load();
  for (const auto& layer : load.tokens)
    out.add_layers()->mutable_tokens()->Add(layer.begin(), layer.end());
}

// From the wire. Only what our types could not hold is checked here; validate() does the rest.

Result<std::string> get_text(const std::string& text) {
  if (text.size() > kMaxTextBytes) return damaged("a text is too long");
  return text;
}

Result<void> get(const wire::Error& in, Error& error) {
  if (in.code().empty() || in.code().size() > kMaxNameBytes) return damaged("an error has no code");
  error.code = error_code_from_name(in.code());
  MOIETY_ASSIGN(error.message, get_text(in.message()));
  return {};
}

Result<std::chrono::milliseconds> get_duration(std::uint64_t milliseconds) {
  constexpr auto kMax = std::chrono::milliseconds(kMaxDuration).count();
  if (milliseconds > static_cast<std::uint64_t>(kMax)) return damaged("a duration is out of range");
  return std::chrono::milliseconds(milliseconds);
}

std::vector<ExpertId> get(const google::protobuf::RepeatedPtrField<wire::LayerExperts>& in) {
  std::vector<ExpertId> experts;
  for (const wire::LayerExperts& layer : in) {
    for (std::int32_t expert : layer.experts()) experts.push_back({layer.layer(), expert});
  }
  return experts;
}

Result<ControlMessage> get(const wire::Hello& in) {
  Hello hello;
  hello.protocol_version = in.protocol_version();
  if (in.role() < 0 || in.role() > 255) return damaged("Hello: role: unknown");
  hello.role = static_cast<Role>(in.role());
  if (in.has_id()) hello.id = in.id();
  hello.incarnation = in.incarnation();
  hello.token = in.token();
  hello.pid = in.pid();
  hello.build = in.build();
  hello.lane_address = in.lane_address();
  hello.http_address = in.http_address();
  hello.fingerprint = in.fingerprint();
  hello.capacity_bytes = in.capacity_bytes();
  hello.resident = get(in.resident());
  hello.epoch = Epoch{in.epoch()};
  return ControlMessage(std::move(hello));
}

Result<ControlMessage> get(const wire::Welcome& in) {
  Welcome welcome;
  welcome.coordinator_instance = in.coordinator_instance();
  welcome.assigned_id = in.assigned_id();
  MOIETY_ASSIGN(welcome.lease_ttl, get_duration(in.lease_ttl_ms()));
  MOIETY_ASSIGN(welcome.heartbeat_interval, get_duration(in.heartbeat_interval_ms()));
  return ControlMessage(std::move(welcome));
}

Result<ControlMessage> get(const wire::Refuse& in) {
  Refuse refuse;
  MOIETY_TRY(get(in.error(), refuse.error));
  return ControlMessage(std::move(refuse));
}

Result<ControlMessage> get(const wire::WorkerHeartbeat& in) {
  return ControlMessage(WorkerHeartbeat{{.bytes_resident = in.bytes_resident(),
                                         .bytes_read = in.bytes_read(),
                                         .experts_resident = in.experts_resident(),
                                         .rows_processed = in.rows_processed(),
                                         .dispatches = in.dispatches()}});
}

Result<ControlMessage> get(const wire::LoadExperts& in) {
  return ControlMessage(LoadExperts{Epoch{in.epoch()}, get(in.experts())});
}

Result<ControlMessage> get(const wire::ExpertsReady& in) {
  ExpertsReady ready{Epoch{in.epoch()}, in.bytes_read(), std::nullopt};
  if (in.has_error()) MOIETY_TRY(get(in.error(), ready.error.emplace()));
  return ControlMessage(std::move(ready));
}

Result<ControlMessage> get(const wire::DropExperts& in) {
  return ControlMessage(DropExperts{Epoch{in.epoch()}, get(in.keep())});
}

Result<ControlMessage> get(const wire::Shutdown& in) {
  MOIETY_ASSIGN(std::string reason, get_text(in.reason()));
  return ControlMessage(Shutdown{std::move(reason)});
}

Result<Placement> get_placement(const wire::PublishEpoch& in) {
  Placement placement;
  placement.epoch = Epoch{in.epoch()};
  std::size_t num_experts = 0;
  for (const wire::LayerOwners& layer : in.placement()) {
    // Checked before anything is allocated: one byte of the message makes one vector here.
    num_experts += static_cast<std::size_t>(layer.num_owners_size());
    if (num_experts > kMaxExperts) return damaged("a placement has too many experts");
    auto& owners = placement.owners.emplace_back();
    owners.reserve(static_cast<std::size_t>(layer.num_owners_size()));
    int next = 0;
    for (std::uint32_t count : layer.num_owners()) {
      if (count > static_cast<std::uint32_t>(layer.owners_size() - next)) {
        return damaged("a placement counts more owners than it lists");
      }
      auto& of_expert = owners.emplace_back();
      for (std::uint32_t i = 0; i < count; ++i) of_expert.push_back(WorkerId{layer.owners(next++)});
    }
    if (next != layer.owners_size()) return damaged("a placement lists owners of no expert");
  }
  return placement;
}

Result<ControlMessage> get(const wire::PublishEpoch& in) {
  PublishEpoch publish;
  MOIETY_ASSIGN(publish.view.placement, get_placement(in));
  publish.view.placement.router_experts = get(in.router_experts());
  for (const wire::WorkerEndpoint& worker : in.workers()) {
    publish.view.workers.push_back(
        {WorkerId{worker.id()}, worker.incarnation(), worker.lane_address()});
  }
  for (const wire::Deployment& in_deployment : in.deployments()) {
    Deployment& deployment = publish.view.deployments.emplace_back();
    deployment.name = in_deployment.name();
    deployment.kept.full = in_deployment.full();
    deployment.draining = in_deployment.draining();
    if (!wire::Deployment::MissingPolicy_IsValid(in_deployment.on_missing())) {
      return damaged("a deployment's on_missing is unknown");
    }
    deployment.on_missing = static_cast<MissingPolicy>(in_deployment.on_missing());
    for (const wire::KeptLayer& layer : in_deployment.kept()) {
      deployment.kept.layers.emplace_back(layer.experts().begin(), layer.experts().end());
    }
  }
  return ControlMessage(std::move(publish));
}

Result<ControlMessage> get(const wire::EpochActive& in) {
  EpochActive active{Epoch{in.epoch()}, {}, in.problem()};
  for (std::uint32_t worker : in.lost_workers()) active.lost_workers.push_back(WorkerId{worker});
  return ControlMessage(std::move(active));
}

Result<ControlMessage> get(const wire::RouterHeartbeat& in) {
  RouterHeartbeat heartbeat;
  RouterStats& stats = heartbeat.stats;
  stats.epoch = Epoch{in.epoch()};
  stats.running = in.running();
  stats.waiting = in.waiting();
  stats.parked = in.parked();
  for (const wire::DeploymentLoad& load : in.running_per_deployment()) {
    if (!stats.running_per_deployment.emplace(load.name(), load.running()).second) {
      return damaged("RouterHeartbeat: a deployment appears twice");
    }
  }
  stats.requests_total = in.requests_total();
  stats.prompt_tokens_total = in.prompt_tokens_total();
  stats.generation_tokens_total = in.generation_tokens_total();
  stats.experts_resident = in.experts_resident();
  stats.bytes_resident = in.bytes_resident();
  return ControlMessage(std::move(heartbeat));
}

Result<ControlMessage> get(const wire::WorkerSuspect& in) {
  MOIETY_ASSIGN(std::string reason, get_text(in.reason()));
  return ControlMessage(WorkerSuspect{WorkerId{in.worker()}, in.incarnation(), std::move(reason)});
}

Result<ControlMessage> get(const wire::ExpertLoad& in) {
  // Checked before anything is allocated: two bytes of the message make one vector here.
  if (static_cast<std::size_t>(in.layers_size()) > kMaxLayers)
    return damaged("ExpertLoad: too many layers");
  ExpertLoad load;
  for (const wire::LayerLoad& layer : in.layers())
    load.tokens.emplace_back(layer.tokens().begin(), layer.tokens().end());
  return ControlMessage(std::move(load));
}

Result<ControlMessage> get(const wire::Control& in) {
  switch (in.message_case()) {
    case wire::Control::kHello:
      return get(in.hello());
    case wire::Control::kWelcome:
      return get(in.welcome());
    case wire::Control::kRefuse:
      return get(in.refuse());
    case wire::Control::kWorkerHeartbeat:
      return get(in.worker_heartbeat());
    case wire::Control::kLoadExperts:
      return get(in.load_experts());
    case wire::Control::kExpertsReady:
      return get(in.experts_ready());
    case wire::Control::kDropExperts:
      return get(in.drop_experts());
    case wire::Control::kShutdown:
      return get(in.shutdown());
    case wire::Control::kPublishEpoch:
      return get(in.publish_epoch());
    case wire::Control::kEpochActive:
      return get(in.epoch_active());
    case wire::Control::kRouterHeartbeat:
      return get(in.router_heartbeat());
    case wire::Control::kWorkerSuspect:
      return get(in.worker_suspect());
    case wire::Control::kExpertLoad:
      return get(in.expert_load());
    case wire::Control::MESSAGE_NOT_SET:
      break;
  }
  return damaged("it holds no message of this protocol version");
}

}  // namespace

Result<std::string> encode(const ControlMessage& message) {
  MOIETY_TRY(validate(message));
  wire::Control control;
  std::visit([&](const auto& m) { put(m, control); }, message);
  const std::size_t bytes = control.ByteSizeLong();
  if (bytes > kMaxMessageBytes) {
    return fail(
        ErrorCode::kInvalidArgument,
        fmt::format("a control message has {} bytes, at most {} fit", bytes, kMaxMessageBytes));
  }
  return control.SerializeAsString();
}

Result<ControlMessage> decode(std::string_view payload) {
  if (payload.size() > kMaxMessageBytes) return damaged("it is too long");
  wire::Control control;
  if (!control.ParseFromArray(payload.data(), static_cast<int>(payload.size()))) {
    return damaged("it is not a protobuf message");
  }
  MOIETY_ASSIGN(ControlMessage message, get(control));
  if (const Result<void> valid = validate(message); !valid) return damaged(valid.error().message);
  return message;
}

}  // namespace moiety::proto
