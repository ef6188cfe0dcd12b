#include "coordinator/admin_api.h"

#include <fmt/core.h>

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>

#include "common/deployment_name.h"

namespace moiety::coordinator {

namespace json = boost::json;

namespace {

constexpr std::string_view kDeployments = "/v1/deployments";
constexpr std::string_view kOperations = "/v1/operations";

Error no_such_endpoint(std::string_view method, std::string_view path) {
  return fail(
      ErrorCode::kNotFound,
      fmt::format(
          "there is no {} {}; GET /health, /metrics, /v1/status, /v1/deployments and "
          "/v1/operations/ID, POST /v1/deployments and /v1/shutdown, DELETE /v1/deployments/NAME",
          method, path));
}

/// Reads "wait=true|false"; other fields of the query are an error.
Result<bool> parse_wait(std::string_view query) {
  bool wait = true;
  while (!query.empty()) {
    const std::string_view field = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(query.size(), field.size() + 1));
    if (field == "wait=true") {
      wait = true;
    } else if (field == "wait=false") {
      wait = false;
    } else {
      return fail(
          ErrorCode::kInvalidArgument,
          fmt::format("query: '{}' is not understood; only wait=true and wait=false are", field));
    }
  }
  return wait;
}

Result<PostDeployment> parse_post(std::string_view query,
                                  std::string_view body,
                                  const AdminContext& context) {
  PostDeployment call;
  MOIETY_ASSIGN(call.wait, parse_wait(query));
  boost::system::error_code error;
  const json::value parsed = json::parse(json::string_view(body.data(), body.size()), error);
  if (error || !parsed.is_object()) {
    return fail(ErrorCode::kInvalidArgument,
                "the body is not a JSON object: send {\"name\": NAME, \"subset\": {...}} or "
                "{\"full\": true}");
  }
  const json::object& fields = parsed.as_object();
  std::string name;
  bool full = false;
  const json::value* subset = nullptr;
  for (const auto& field : fields) {
    if (field.key() == "name" && field.value().is_string()) {
      name = std::string(field.value().as_string());
    } else if (field.key() == "full" && field.value().is_bool()) {
      full = field.value().as_bool();
    } else if (field.key() == "subset" && field.value().is_object()) {
      subset = &field.value();
    } else {
      return fail(
          ErrorCode::kInvalidArgument,
          fmt::format(
              "field '{}' is unknown or of the wrong type; name is a string, full a boolean, "
              "subset an object (the content of a subset file)",
              std::string_view(field.key().data(), field.key().size())));
    }
  }
  if (full == (subset != nullptr)) {
    return fail(ErrorCode::kInvalidArgument, "give either \"subset\" or \"full\": true");
  }
  if (full) {
    call.deployment = full_model(context.model);
    if (name.empty() || name == context.served_name) return call;
    MOIETY_TRY(check_deployment_name(name, context.served_name));
    call.deployment.name = std::move(name);
    return call;
  }
  MOIETY_ASSIGN(call.deployment,
                make_deployment(std::move(name), json::serialize(*subset), context));
  return call;
}

Result<DeleteDeployment> parse_delete(std::string_view name,
                                      std::string_view query,
                                      const AdminContext& context) {
  DeleteDeployment call;
  MOIETY_ASSIGN(call.wait, parse_wait(query));
  if (name == context.served_name) return call;
  const std::string prefix = context.served_name + ":";
  if (name.starts_with(prefix)) name.remove_prefix(prefix.size());
  MOIETY_TRY(check_deployment_name(name, context.served_name));
  call.name = std::string(name);
  return call;
}

}  // namespace

Result<AdminCall> parse_admin_call(std::string_view method,
                                   std::string_view path,
                                   std::string_view query,
                                   std::string_view body,
                                   const AdminContext& context) {
  if (method == "GET") {
    if (path == "/health") return AdminCall{GetHealth{}};
    if (path == "/metrics") return AdminCall{GetMetrics{}};
    if (path == "/v1/status") return AdminCall{GetStatus{}};
    if (path == kDeployments) return AdminCall{GetDeployments{}};
    if (path.starts_with(kOperations) && path.substr(kOperations.size()).starts_with('/')) {
      const std::string_view digits = path.substr(kOperations.size() + 1);
      GetOperation call;
      const auto [end, error] =
          std::from_chars(digits.data(), digits.data() + digits.size(), call.id.value);
      if (error != std::errc{} || end != digits.data() + digits.size()) {
        return fail(ErrorCode::kInvalidArgument,
                    fmt::format("'{}' is not the id of an operation", digits));
      }
      return AdminCall{call};
    }
  }
  if (method == "POST" && path == kDeployments) {
    MOIETY_ASSIGN(PostDeployment call, parse_post(query, body, context));
    return AdminCall{std::move(call)};
  }
  if (method == "POST" && path == "/v1/shutdown") return AdminCall{PostShutdown{}};
  if (method == "DELETE" && path.starts_with(kDeployments) &&
      path.substr(kDeployments.size()).starts_with('/')) {
    MOIETY_ASSIGN(DeleteDeployment call,
                  parse_delete(path.substr(kDeployments.size() + 1), query, context));
    return AdminCall{std::move(call)};
  }
  return no_such_endpoint(method, path);
}

Result<void> check_deployment_name(std::string_view name, std::string_view served_name) {
  MOIETY_TRY(moiety::check_deployment_name(name));
  if (name == served_name) {
    return fail(ErrorCode::kInvalidArgument,
                fmt::format("name '{}' is the full model's; give the subset another name", name));
  }
  return {};
}

Result<Deployment> make_deployment(std::string name,
                                   std::string_view subset_json,
                                   const AdminContext& context) {
  MOIETY_TRY(check_deployment_name(name, context.served_name));
  MOIETY_ASSIGN(const planner::Subset subset, planner::parse_subset(subset_json));
  Deployment deployment;
  MOIETY_ASSIGN(deployment.kept, planner::resolve_subset(subset, context.model));
  deployment.name = std::move(name);
  return deployment;
}

Deployment full_model(const planner::ModelShape& model) {
  return {"", planner::keep_all(model), false};
}

namespace {

std::string envelope(std::string_view message, int status, json::value code) {
  const char* type = status == 404   ? "not_found_error"
                     : status == 429 ? "rate_limit_error"
                     : status < 500  ? "invalid_request_error"
                                     : "server_error";
  return json::serialize(
      json::object{{"error",
                    {{"message", json::string_view(message.data(), message.size())},
                     {"type", type},
                     {"param", nullptr},
                     {"code", std::move(code)}}}});
}

}  // namespace

std::string error_body(const Error& error) {
  const ErrorInfo& info = error_info(error.code);
  return envelope(error.message, info.http_status,
                  json::string(info.name.data(), info.name.size()));
}

std::string error_body(int status, std::string_view message) {
  return envelope(message, status, nullptr);
}

}  // namespace moiety::coordinator
