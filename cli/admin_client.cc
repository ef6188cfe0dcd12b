#include "cli/admin_client.h"

#include <fmt/format.h>

#include "cli/command.h"
#include "http/client.h"

namespace moiety::cli {
namespace json = boost::json;
namespace {

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

}  // namespace

Result<json::value> AdminClient::call(const std::string& method,
                                      const std::string& path,
                                      const std::string& body,
                                      std::chrono::milliseconds timeout) const {
  auto response = http::request(method, url_ + path, body, timeout);
  if (!response) {
    if (response.error().code == ErrorCode::kUnavailable) {
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
  const json::value* code = error->as_object().if_contains("code");
  return fail(code != nullptr && code->is_string() ? error_code_from_name(text(*code))
                                                   : ErrorCode::kInternal,
              text(error->at("message")));
}

std::string format_status(const json::value& status) {
  const json::value& fleet = status.at("fleet");
  std::string out =
      fmt::format("model {}  epoch {}  placement {}, at most {} experts per layer and worker\n",
                  text(status.at("model")), status.at("epoch").to_number<std::uint64_t>(),
                  text(status.at("policy")), status.at("capacity_per_layer").to_number<int>());
  out += fmt::format(
      "fleet {} of {} workers, {} of {} experts ({} of {})\n\n",
      fleet.at("workers_running").to_number<int>(), status.at("max_workers").to_number<int>(),
      fleet.at("experts_resident").to_number<int>(), fleet.at("routed_experts").to_number<int>(),
      bytes(fleet.at("bytes_resident")), bytes(fleet.at("routed_bytes")));
  out += fmt::format("{:<8} {:<9} {:>8} {:>8} {:>11} {:>11} {:>12}  {}\n", "worker", "state", "pid",
                     "experts", "resident", "read", "pairs run", "metrics");
  for (const json::value& worker : status.at("workers").as_array()) {
    out += fmt::format(
        "{:<8} {:<9} {:>8} {:>8} {:>11} {:>11} {:>12}  {}\n", worker.at("id").to_number<int>(),
        text(worker.at("state")), worker.at("pid").to_number<std::int64_t>(),
        worker.at("experts_resident").to_number<int>(), bytes(worker.at("bytes_resident")),
        bytes(worker.at("bytes_read")), worker.at("rows_processed").to_number<std::uint64_t>(),
        text(worker.at("http_address")));
  }
  out += fmt::format("\n{:<28} {:<9} {:>12} {:>11} {:>8}  {}\n", "deployment", "state",
                     "routed/layer", "bytes", "running", "workers");
  for (const json::value& deployment : status.at("deployments").as_array()) {
    const json::value& kept = deployment.at("experts_per_layer");
    const int least = kept.at("min").to_number<int>();
    const int most = kept.at("max").to_number<int>();
    out += fmt::format("{:<28} {:<9} {:>12} {:>11} {:>8}  {}\n", text(deployment.at("served_as")),
                       text(deployment.at("state")),
                       least == most ? std::to_string(least) : fmt::format("{} to {}", least, most),
                       bytes(deployment.at("bytes")),
                       deployment.at("running").to_number<std::uint64_t>(),
                       join(deployment.at("workers")));
  }
  out +=
      fmt::format("\n{:<44} {:>8} {:>11}  {}\n", "experts kept by", "experts", "bytes", "workers");
  for (const json::value& group : status.at("groups").as_array()) {
    const std::string members = group.at("deployments").as_array().empty()
                                    ? "nobody (cold)"
                                    : join(group.at("deployments"));
    out += fmt::format("{:<44} {:>8} {:>11}  {}\n", members,
                       group.at("experts").to_number<std::uint64_t>(), bytes(group.at("bytes")),
                       join(group.at("workers")));
  }
  out += "\n";
  for (const json::value& router : status.at("routers").as_array()) {
    out += fmt::format(
        "router {} at http://{}: epoch {}, {} running, {} waiting, {} requests so far\n",
        router.at("id").to_number<int>(), text(router.at("http_address")),
        router.at("epoch").to_number<std::uint64_t>(),
        router.at("running").to_number<std::uint64_t>(),
        router.at("waiting").to_number<std::uint64_t>(),
        router.at("requests_total").to_number<std::uint64_t>());
  }
  for (const json::value& lost : status.at("lost").as_array()) {
    out +=
        fmt::format("LOST worker {}: {} experts of {} ({})\n", lost.at("worker").to_number<int>(),
                    lost.at("experts").to_number<std::uint64_t>(), join(lost.at("deployments")),
                    text(lost.at("reason")));
  }
  if (const json::value& operation = status.at("operation"); operation.is_object()) {
    const json::value& waiting = operation.at("waiting_for");
    const json::value& name = operation.at("served_as");  // null for the cluster's start
    out += fmt::format("under way: {}{}{}\n", text(operation.at("kind")),
                       name.is_string() ? " " + text(name) : "",
                       waiting.is_string() ? ", waiting for " + text(waiting) : "");
  }
  return out;
}

}  // namespace moiety::cli
