#include "coordinator/status_json.h"

#include <boost/json.hpp>

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
                      {"experts_resident", each.stats.experts_resident},
                      {"bytes_resident", each.stats.bytes_resident},
                      {"bytes_read", each.stats.bytes_read},
                      {"rows_processed", each.stats.rows_processed},
                      {"dispatches", each.stats.dispatches},
                      {"http_address", text(each.http_address)},
                      {"lease_age_ms", nullptr},
                      {"losses", each.losses},
                      {"last_loss", nullptr}};
  if (each.lease_age) object["lease_age_ms"] = each.lease_age->count();
  if (!each.last_loss.empty()) object["last_loss"] = text(each.last_loss);
  return object;
}

json::object deployment(const DeploymentStatus& each) {
  return {{"name", text(each.name)},
          {"served_as", text(each.served_as)},
          {"state", text(each.state)},
          {"full", each.full},
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
  json::object object{{"operation_id", each.id.value},
                      {"kind", text(each.kind)},
                      {"name", text(each.name)},
                      {"served_as", nullptr},
                      {"state", text(operation_state_name(each.state))},
                      {"waiting_for", nullptr},
                      {"error", nullptr},
                      {"epoch", nullptr},
                      {"experts_loaded", each.cost.experts_loaded},
                      {"bytes_loaded", each.cost.bytes_loaded},
                      {"experts_dropped", each.cost.experts_dropped},
                      {"bytes_dropped", each.cost.bytes_dropped}};
  if (each.kind != "start") object["served_as"] = text(served_as(served_name, each.name));
  if (!each.waiting_for.empty()) object["waiting_for"] = text(each.waiting_for);
  if (each.epoch.value != 0) object["epoch"] = each.epoch.value;
  if (each.error) {
    object["error"] = {{"message", text(each.error->message)},
                       {"code", text(error_info(each.error->code).name)}};
  }
  return object;
}

}  // namespace

std::string status_json(const ClusterStatus& status, const std::deque<Decision>& decisions) {
  json::object object{{"model", text(status.served_name)},
                      {"fingerprint", text(status.fingerprint)},
                      {"ready", status.ready},
                      {"shutting_down", status.shutting_down},
                      {"epoch", status.epoch.value},
                      {"policy", text(planner::policy_name(status.policy))},
                      {"capacity_per_layer", status.capacity_per_layer},
                      {"max_workers", status.max_workers}};
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
  json::array lines;
  for (const Decision& each : decisions)
    lines.push_back({{"time", text(each.time)}, {"text", text(each.text)}});
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

std::string accepted_json(OperationId id) {
  return json::serialize(json::object{{"operation_id", id.value}});
}

}  // namespace moiety::coordinator
