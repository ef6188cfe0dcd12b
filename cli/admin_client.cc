#include "cli/admin_client.h"

#include <fmt/format.h>

#include <cstdlib>
#include <iostream>
#include <map>
#include <thread>

#include "cli/command.h"
#include "common/ids.h"
#include "http/client.h"

namespace moiety::cli {
namespace json = boost::json;
namespace {

constexpr std::chrono::seconds kCallTimeout{10};
constexpr std::chrono::milliseconds kPoll{100};

std::string text(const json::value& value) { return std::string(value.as_string()); }

std::string join(const json::value& array) {
  std::string joined;
  for (const json::value& value : array.as_array()) {
    joined +=
        (joined.empty() ? "" : ", ") + (value.is_string() ? text(value) : json::serialize(value));
  }
  return joined.empty() ? "-" : joined;
}

std::string bytes(const json::value& value) { return human_bytes(value.to_number<double>()); }
std::uint64_t count(const json::value& value) { return value.to_number<std::uint64_t>(); }

std::string format_fleet(const json::value& status) {
  const json::value& fleet = status.at("fleet");
  std::string limit;
  if (const auto experts = count(status.at("capacity_per_layer")); experts > 0)
    limit = fmt::format(", at most {} experts per layer and worker", experts);
  std::string out = fmt::format("model {}  epoch {}  placement {}{}\n", text(status.at("model")),
                                count(status.at("epoch")), text(status.at("policy")), limit);
  out += fmt::format("fleet {} of {} workers{}, {} of {} experts ({} of {})\n",
                     count(fleet.at("workers_running")), count(status.at("max_workers")),
                     status.at("static_fleet").as_bool() ? " (static)" : "",
                     count(fleet.at("experts_resident")), count(fleet.at("routed_experts")),
                     bytes(fleet.at("bytes_resident")), bytes(fleet.at("routed_bytes")));
  if (const auto replicas = count(status.at("replicas")); replicas > 1) {
    const auto missing = count(status.at("replicas_missing"));
    out += fmt::format("replicas {}{}\n", replicas,
                       missing == 0 ? "" : fmt::format(", {} copies are missing", missing));
  }
  if (const auto experts = count(status.at("router_experts")); experts > 0)
    out += fmt::format("every router holds {} experts itself, within {}\n", experts,
                       bytes(status.at("router_expert_bytes")));
  if (const json::value& why = status.at("not_ready"); why.is_string())
    out += "NOT READY: " + text(why) + "\n";
  if (status.at("epochs").as_array().size() > 1) {
    out += "epochs in use:";
    for (const json::value& epoch : status.at("epochs").as_array()) {
      out += fmt::format(" {} (routers {})", count(epoch.at("epoch")), join(epoch.at("routers")));
    }
    out += "\n";
  }
  return out;
}

std::string format_workers(const json::value& status) {
  std::string out = fmt::format("{:<8} {:<9} {:>8} {:>8} {:>11} {:>11} {:>11} {:>12} {:>7}  {}\n",
                                "worker", "state", "pid", "experts", "resident", "capacity", "read",
                                "pairs run", "load", "metrics");
  for (const json::value& worker : status.at("workers").as_array()) {
    const json::value& capacity = worker.at("capacity_bytes");
    const double load = worker.at("load").to_number<double>();
    out += fmt::format(
        "{:<8} {:<9} {:>8} {:>8} {:>11} {:>11} {:>11} {:>12} {:>7}  {}{}\n", count(worker.at("id")),
        worker.at("drained").as_bool() ? "drained" : text(worker.at("state")),
        worker.at("pid").to_number<std::int64_t>(), count(worker.at("experts_resident")),
        bytes(worker.at("bytes_resident")), capacity.is_null() ? "-" : bytes(capacity),
        bytes(worker.at("bytes_read")), count(worker.at("rows_processed")),
        load > 0 ? fmt::format("{:.1f} %", 100 * load) : "-", text(worker.at("http_address")),
        count(worker.at("stands_in_for")) == 0
            ? ""
            : fmt::format(" (stands in for {} experts)", count(worker.at("stands_in_for"))));
  }
  return out;
}

std::string format_deployments(const json::value& status) {
  std::string out =
      fmt::format("{:<28} {:<9} {:>12} {:>11} {:>8} {:>10}  {}\n", "deployment", "state",
                  "routed/layer", "bytes", "running", "on missing", "workers");
  for (const json::value& deployment : status.at("deployments").as_array()) {
    const json::value& kept = deployment.at("experts_per_layer");
    const int least = kept.at("min").to_number<int>();
    const int most = kept.at("max").to_number<int>();
    out += fmt::format("{:<28} {:<9} {:>12} {:>11} {:>8} {:>10}  {}\n",
                       text(deployment.at("served_as")), text(deployment.at("state")),
                       least == most ? std::to_string(least) : fmt::format("{} to {}", least, most),
                       bytes(deployment.at("bytes")), count(deployment.at("running")),
                       text(deployment.at("on_missing")), join(deployment.at("workers")));
  }
  return out;
}

std::string format_groups(const json::value& status) {
  std::string out = fmt::format("{:<44} {:>8} {:>8} {:>11}  {}\n", "experts kept by", "experts",
                                "copies", "bytes", "workers");
  for (const json::value& group : status.at("groups").as_array()) {
    const std::string members = group.at("deployments").as_array().empty()
                                    ? "nobody (cold)"
                                    : join(group.at("deployments"));
    const double load = group.at("load").to_number<double>();
    std::string owners = join(group.at("workers"));
    if (const auto here = count(group.at("on_routers")); here > 0)
      owners = fmt::format("{}router ({})", owners == "-" ? "" : owners + ", ", here);
    out += fmt::format("{:<44} {:>8} {:>8} {:>11}  {}{}\n", members, count(group.at("experts")),
                       count(group.at("copies")), bytes(group.at("bytes")), owners,
                       load > 0 ? fmt::format(" ({:.1f} % of the load)", 100 * load) : "");
  }
  return out;
}

std::string format_routers(const json::value& status) {
  std::string out;
  for (const json::value& router : status.at("routers").as_array()) {
    const auto parked = count(router.at("parked"));
    out += fmt::format(
        "router {} at http://{}{}: epoch {}, {} running{}, {} waiting, {} requests and {} tokens "
        "so far{}\n",
        count(router.at("id")), text(router.at("http_address")),
        router.at("connected").as_bool() ? "" : " (away)", count(router.at("epoch")),
        count(router.at("running")),
        parked == 0 ? "" : fmt::format(" ({} wait for lost experts)", parked),
        count(router.at("waiting")), count(router.at("requests_total")),
        count(router.at("generation_tokens_total")),
        count(router.at("experts_resident")) == 0
            ? ""
            : fmt::format(", holds {} experts ({})", count(router.at("experts_resident")),
                          bytes(router.at("bytes_resident"))));
  }
  return out;
}

}  // namespace

Result<json::value> AdminClient::call(const std::string& method,
                                      const std::string& path,
                                      const std::string& body,
                                      std::chrono::milliseconds timeout) const {
  bool nobody = false;
  return exchange(method, path, body, timeout, &nobody);
}

Result<json::value> AdminClient::call_patiently(const std::string& method,
                                                const std::string& path,
                                                const std::string& body) const {
  const Deadline deadline = Clock::now() + kPatience;
  for (bool said = false;; said = true) {
    bool nobody = false;
    auto answer = exchange(method, path, body, kCallTimeout, &nobody);
    if (answer || !nobody || Clock::now() >= deadline) return answer;
    if (interrupted()) return interrupted_error();
    if (!said) {
      std::cerr << fmt::format(
                       "moiety: nobody answers at {}; waiting {} s for a coordinator that is "
                       "being started again",
                       url_, std::chrono::duration_cast<std::chrono::seconds>(kPatience).count())
                << std::endl;
    }
    std::this_thread::sleep_for(kPoll);
  }
}

Result<json::value> AdminClient::exchange(const std::string& method,
                                          const std::string& path,
                                          const std::string& body,
                                          std::chrono::milliseconds timeout,
                                          bool* nobody) const {
  std::map<std::string, std::string> headers;
  if (const char* token = std::getenv("MOIETY_TOKEN"); token != nullptr && *token != '\0')
    headers["Authorization"] = std::string("Bearer ") + token;
  auto response = http::request(method, url_ + path, body, timeout, headers);
  if (!response) {
    *nobody = response.error().code == ErrorCode::kUnavailable;
    if (*nobody) {
      return fail(response.error().code,
                  response.error().message +
                      "; is a cluster running? `moiety up` starts one, --admin names another");
    }
    return response.error();
  }
  boost::system::error_code ec;
  const json::value parsed = json::parse(response->body, ec);
  if (response->status / 100 == 2 && !ec) return parsed;
  const json::value* error =
      ec || !parsed.is_object() ? nullptr : parsed.as_object().if_contains("error");
  if (error == nullptr || !error->is_object()) {
    return fail(ErrorCode::kInternal,
                method + " " + url_ + path + ": status " + std::to_string(response->status) +
                    " with an answer that is not understood; is this a Moiety coordinator?");
  }
  if (response->status == 401)
    return fail(ErrorCode::kFailedPrecondition, text(error->at("message")));
  const json::value* code = error->as_object().if_contains("code");
  return fail(code != nullptr && code->is_string() ? error_code_from_name(text(*code))
                                                   : ErrorCode::kInternal,
              text(error->at("message")));
}

std::string format_status(const json::value& status) {
  std::string out = format_fleet(status) + "\n" + format_workers(status) + "\n" +
                    format_deployments(status) + "\n" + format_groups(status) + "\n" +
                    format_routers(status);
  for (const json::value& lost : status.at("lost").as_array()) {
    out += fmt::format("LOST worker {}: {} experts of {} ({})\n",
                       lost.at("worker").to_number<int>(), count(lost.at("experts")),
                       join(lost.at("deployments")), text(lost.at("reason")));
  }
  if (const json::value& blocked = status.at("blocked"); blocked.is_string())
    out += "BLOCKED: " + text(blocked) + "\n";
  if (const json::value& operation = status.at("operation"); operation.is_object())
    out += "under way: " + describe_operation(operation) + "\n";
  if (const auto waiting = count(status.at("queued_operations")); waiting > 0)
    out += fmt::format("{} further changes wait\n", waiting);
  return out;
}

std::string describe_operation(const json::value& operation) {
  std::string line = text(operation.at("kind"));
  if (operation.at("served_as").is_string()) line += " " + text(operation.at("served_as"));
  if (operation.at("worker").is_number())
    line += " of worker " + json::serialize(operation.at("worker"));
  if (const auto steps = count(operation.at("num_steps")); steps > 1)
    line += fmt::format(", step {} of {}", count(operation.at("step")), steps);
  const json::value& waiting = operation.at("waiting_for");
  return line + (waiting.is_string() ? ": waiting for " + text(waiting)
                                     : ": " + text(operation.at("state")));
}

}  // namespace moiety::cli
