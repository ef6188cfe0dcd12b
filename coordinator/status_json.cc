#include "coordinator/status_json.h"

#include <algorithm>
#include <boost/json.hpp>

#include "coordinator/durable_json.h"

namespace moiety::coordinator {

namespace json = boost::json;

namespace {

json::string text(std::string_view value) { return json::string(value.data(), value.size()); }

json::array ids(const std::vector<WorkerId>& workers) {
  json::array all;
  for (WorkerId id : workers) all.push_back(id.value);
  return all;
}

json::array names(const std::vector<std::string>& values) {
  json::array all;
  for (const std::string& each : values) all.push_back(text(each));
  return all;
}

json::object worker(const WorkerStatus& each) {
  json::object object{{"id", each.id.value},
                      {"state", text(worker_state_name(each.state))},
                      {"pid", each.pid},
                      {"incarnation", each.incarnation},
                      {"experts", each.experts},
                      {"bytes", each.bytes},
                      {"capacity_bytes", nullptr},
                      {"stands_in_for", each.stands_in_for},
                      {"drained", each.drained},
                      {"load", each.load},
                      {"experts_resident", each.stats.experts_resident},
                      {"bytes_resident", each.stats.bytes_resident},
                      {"bytes_read", each.stats.bytes_read},
                      {"rows_processed", each.stats.rows_processed},
                      {"dispatches", each.stats.dispatches},
                      {"http_address", text(each.http_address)},
                      {"lease_age_ms", nullptr},
                      {"losses", each.losses},
                      {"last_loss", nullptr}};
  if (each.capacity_bytes != 0) object["capacity_bytes"] = each.capacity_bytes;
  if (each.lease_age) object["lease_age_ms"] = each.lease_age->count();
  if (!each.last_loss.empty()) object["last_loss"] = text(each.last_loss);
  return object;
}

json::object deployment(const DeploymentStatus& each) {
  return {{"name", text(each.name)},
          {"served_as", text(each.served_as)},
          {"state", text(each.state)},
          {"full", each.full},
          {"on_missing", text(missing_policy_name(each.on_missing))},
          {"experts_per_layer", {{"min", each.kept_min}, {"max", each.kept_max}}},
          {"workers", ids(each.workers)},
          {"lost_workers", ids(each.lost_workers)},
          {"bytes", each.bytes},
          {"running", each.running}};
}

json::array deployments(const ClusterStatus& status) {
  json::array all;
  for (const DeploymentStatus& each : status.deployments) all.push_back(deployment(each));
  return all;
}

json::object operation(const OperationStatus& each, const std::string& served_name) {
  json::object object{{"operation_id", text(each.id.value)},
                      {"kind", text(operation_kind_name(each.kind))},
                      {"name", nullptr},
                      {"served_as", nullptr},
                      {"worker", nullptr},
                      {"state", text(operation_state_name(each.state))},
                      {"waiting_for", nullptr},
                      {"step", each.step},
                      {"num_steps", each.num_steps},
                      {"error", nullptr},
                      {"rolled_back", each.rolled_back},
                      {"epoch", nullptr},
                      {"experts_loaded", each.cost.experts_loaded},
                      {"bytes_loaded", each.cost.bytes_loaded},
                      {"experts_dropped", each.cost.experts_dropped},
                      {"bytes_dropped", each.cost.bytes_dropped}};
  if (each.kind == OperationKind::kDeploy || each.kind == OperationKind::kUndeploy) {
    object["name"] = text(each.name);
    object["served_as"] = text(served_as(served_name, each.name));
  }
  if (each.worker) object["worker"] = each.worker->value;
  if (!each.waiting_for.empty()) object["waiting_for"] = text(each.waiting_for);
  if (each.epoch.value != 0) object["epoch"] = each.epoch.value;
  if (each.error) {
    object["error"] = {{"message", text(each.error->message)},
                       {"code", text(error_info(each.error->code).name)}};
  }
  return object;
}

json::object decision(const Decision& each) {
  return {{"number", each.number},
          {"time", text(each.time)},
          {"level", text(level_name(each.level))},
          {"text", text(each.text)}};
}

}  // namespace

std::string_view level_name(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "";
}

std::string status_json(const ClusterStatus& status,
                        const RuntimeStatus& runtime,
                        const std::deque<Decision>& decisions) {
  json::object object{{"model", text(status.served_name)},
                      {"fingerprint", text(status.fingerprint)},
                      {"ready", status.ready},
                      {"not_ready", nullptr},
                      {"shutting_down", status.shutting_down},
                      {"epoch", status.epoch.value},
                      {"policy", text(planner::policy_name(status.policy))},
                      {"capacity_per_layer", status.capacity_per_layer},
                      {"max_workers", status.max_workers},
                      {"static_fleet", status.static_fleet},
                      {"move_headroom", status.move_headroom},
                      {"replicas", status.replicas},
                      {"router_expert_bytes", status.router_expert_bytes},
                      {"router_experts", status.router_experts},
                      {"replicas_missing", status.replicas_missing},
                      {"experts_missing", status.experts_missing}};
  if (!status.ready) object["not_ready"] = text(status.not_ready);
  json::array epochs;
  for (const EpochStatus& each : status.epochs) {
    json::array routers;
    for (RouterId id : each.routers) routers.push_back(id.value);
    epochs.push_back({{"epoch", each.epoch.value},
                      {"workers", ids(each.workers)},
                      {"routers", std::move(routers)}});
  }
  object["epochs"] = std::move(epochs);
  json::array workers;
  for (const WorkerStatus& each : status.workers) workers.push_back(worker(each));
  object["workers"] = std::move(workers);
  object["deployments"] = deployments(status);
  json::array routers;
  for (const RouterStatus& each : status.routers) {
    routers.push_back({{"id", each.id.value},
                       {"http_address", text(each.http_address)},
                       {"pid", each.pid},
                       {"connected", each.connected},
                       {"epoch", each.epoch.value},
                       {"running", each.stats.running},
                       {"waiting", each.stats.waiting},
                       {"parked", each.stats.parked},
                       {"experts_resident", each.stats.experts_resident},
                       {"bytes_resident", each.stats.bytes_resident},
                       {"requests_total", each.stats.requests_total},
                       {"prompt_tokens_total", each.stats.prompt_tokens_total},
                       {"generation_tokens_total", each.stats.generation_tokens_total}});
  }
  object["routers"] = std::move(routers);
  json::array groups;
  for (const GroupStatus& each : status.groups) {
    groups.push_back({{"deployments", names(each.members)},
                      {"experts", each.experts},
                      {"bytes", each.bytes},
                      {"copies", each.copies},
                      {"on_routers", each.on_routers},
                      {"load", each.load},
                      {"workers", ids(each.workers)}});
  }
  object["groups"] = std::move(groups);
  object["fleet"] = {{"workers_running", status.workers_running},
                     {"bytes_resident", status.bytes_resident},
                     {"experts_resident", status.experts_resident},
                     {"routed_experts", status.routed_experts},
                     {"routed_bytes", status.routed_bytes}};
  json::array lost;
  for (const LostWorker& each : status.lost) {
    lost.push_back({{"worker", each.id.value},
                    {"experts", each.experts},
                    {"deployments", names(each.deployments)},
                    {"reason", text(each.reason)}});
  }
  object["lost"] = std::move(lost);
  object["operation"] = nullptr;
  if (status.operation) object["operation"] = operation(*status.operation, status.served_name);
  object["queued_operations"] = status.queued_operations;
  object["counters"] = {{"epoch_changes", status.epoch_changes},
                        {"worker_losses", status.worker_losses},
                        {"worker_restarts", status.worker_restarts}};
  object["state_file"] = nullptr;
  if (!runtime.state_file.empty()) object["state_file"] = text(runtime.state_file);
  object["restored"] = runtime.restored;
  object["blocked"] = nullptr;
  if (runtime.blocked) object["blocked"] = text(runtime.blocked->message);
  constexpr std::size_t kLatest = 20;
  json::array lines;
  for (std::size_t i = decisions.size() - std::min(decisions.size(), kLatest); i < decisions.size();
       ++i)
    lines.push_back(decision(decisions[i]));
  object["decisions"] = std::move(lines);
  return json::serialize(object);
}

std::string deployments_json(const ClusterStatus& status) {
  return json::serialize(
      json::object{{"model", text(status.served_name)}, {"deployments", deployments(status)}});
}

std::string operation_json(const OperationStatus& each, const std::string& served_name) {
  return json::serialize(operation(each, served_name));
}

std::string operations_json(const ClusterStatus& status) {
  json::array all;
  for (const OperationStatus& each : status.operations)
    all.push_back(operation(each, status.served_name));
  return json::serialize(json::object{{"operations", std::move(all)}});
}

std::string placement_json(const EpochView* view) {
  if (view == nullptr) return R"({"epoch":null,"workers":[],"layers":[],"router_experts":[]})";
  json::array workers;
  for (const WorkerEndpoint& each : view->workers) {
    workers.push_back({{"id", each.id.value},
                       {"incarnation", each.incarnation},
                       {"experts", view->placement.experts_of(each.id).size()}});
  }
  json::array layers;
  for (const auto& layer : view->placement.owners) {
    json::array experts;
    for (const auto& owners : layer) experts.push_back(ids(owners));
    layers.push_back(std::move(experts));
  }
  json::array on_routers(view->placement.owners.size(), json::array{});
  for (const ExpertId& id : view->placement.router_experts)
    on_routers[static_cast<std::size_t>(id.layer)].as_array().push_back(id.expert);
  return json::serialize(json::object{{"epoch", view->placement.epoch.value},
                                      {"workers", std::move(workers)},
                                      {"layers", std::move(layers)},
                                      {"router_experts", std::move(on_routers)}});
}

std::string decisions_json(const std::deque<Decision>& decisions, std::uint64_t after) {
  json::array lines;
  for (const Decision& each : decisions) {
    if (each.number > after) lines.push_back(decision(each));
  }
  return json::serialize(json::object{{"decisions", std::move(lines)}});
}

std::string accepted_json(const OperationId& id) {
  return json::serialize(json::object{{"operation_id", text(id.value)}});
}

}  // namespace moiety::coordinator
