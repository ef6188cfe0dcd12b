#include "coordinator/admin_api.h"

#include <fmt/core.h>

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>

#include "common/deployment_name.h"
#include "common/utf8.h"
#include "coordinator/durable_json.h"
#include "http/wire.h"

namespace moiety::coordinator {

namespace json = boost::json;

namespace {

constexpr std::string_view kDeployments = "/v1/deployments";
constexpr std::size_t kMaxOperationId = 128;

Error no_such_endpoint(std::string_view method, std::string_view path) {
  return fail(
      ErrorCode::kNotFound,
      fmt::format(
          "there is no {} {}; GET /health, /metrics, /v1/status, /v1/deployments, "
          "/v1/placement, /v1/decisions, /v1/operations and /v1/operations/ID, POST "
          "/v1/deployments, /v1/workers/ID/drain, /v1/workers/ID/undrain, /v1/rebalance and "
          "/v1/shutdown, DELETE /v1/deployments/NAME",
          method, path));
}

std::string_view view(const json::string& text) { return {text.data(), text.size()}; }

/// A decimal number and nothing else.
template <class Int>
bool parse_number(std::string_view text, Int& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc{} && end == text.data() + text.size();
}

Result<OperationId> parse_operation_id(std::string_view text) {
  const auto allowed = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' ||
           c == '_' || c == '.' || c == ':';
  };
  if (text.empty() || text.size() > kMaxOperationId ||
      !std::all_of(text.begin(), text.end(), allowed)) {
    return fail(ErrorCode::kInvalidArgument,
                fmt::format("operation_id '{}': must be 1 to {} of A-Z a-z 0-9 . _ : -",
                            text.substr(0, kMaxOperationId), kMaxOperationId));
  }
  return OperationId{std::string(text)};
}

/// What every change can say, in its query or (POST) in its body.
struct ChangeFields {
  OperationId operation;
  std::optional<Epoch> expected_epoch;
  bool wait = true;

  Result<void> read_query(std::string_view query) {
    while (!query.empty()) {
      const std::string_view field = query.substr(0, query.find('&'));
      query.remove_prefix(std::min(query.size(), field.size() + 1));
      const std::string_view name = field.substr(0, field.find('='));
      const auto decoded =
          http::decode_escapes(field.substr(std::min(field.size(), name.size() + 1)));
      if (!decoded) {
        return fail(ErrorCode::kInvalidArgument,
                    fmt::format("query: '{}' has a bad percent escape; write '%' as %25", field));
      }
      const std::string_view value = *decoded;
      std::uint64_t epoch = 0;
      if (name == "wait" && (value == "true" || value == "false")) {
        wait = value == "true";
      } else if (name == "operation_id") {
        MOIETY_ASSIGN(operation, parse_operation_id(value));
      } else if (name == "expected_epoch" && parse_number(value, epoch)) {
        expected_epoch = Epoch{epoch};
      } else {
        return fail(ErrorCode::kInvalidArgument,
                    fmt::format("query: '{}' is not understood; wait=true, wait=false, "
                                "operation_id=ID and expected_epoch=N are",
                                field));
      }
    }
    return {};
  }

  /// True: the field was one of ours.
  Result<bool> read_field(std::string_view name, const json::value& value) {
    if (name == "operation_id" && value.is_string()) {
      MOIETY_ASSIGN(operation, parse_operation_id(view(value.as_string())));
      return true;
    }
    if (name == "expected_epoch" && value.is_int64() && value.as_int64() >= 0) {
      expected_epoch = Epoch{static_cast<std::uint64_t>(value.as_int64())};
      return true;
    }
    if (name == "wait" && value.is_bool()) {
      wait = value.as_bool();
      return true;
    }
    return false;
  }

  template <class Request>
  AdminCall apply(Request request) const {
    request.operation = operation;
    request.expected_epoch = expected_epoch;
    return AdminChange{std::move(request), wait};
  }
};

Result<json::object> parse_body(std::string_view body, std::string_view example) {
  boost::system::error_code error;
  json::value parsed = json::parse(json::string_view(body.data(), body.size()), error);
  if (error || !parsed.is_object()) {
    return fail(ErrorCode::kInvalidArgument,
                fmt::format("the body is not a JSON object: send {}", example));
  }
  return std::move(parsed.as_object());
}

Result<AdminCall> parse_deploy(std::string_view query,
                               std::string_view body,
                               const AdminContext& context) {
  ChangeFields common;
  MOIETY_TRY(common.read_query(query));
  MOIETY_ASSIGN(const json::object fields,
                parse_body(body, "{\"name\": NAME, \"subset\": {...}} or {\"full\": true}"));
  std::string name;
  bool full = false;
  MissingPolicy on_missing = MissingPolicy::kWait;
  const json::value* subset = nullptr;
  for (const auto& field : fields) {
    const std::string_view key(field.key().data(), field.key().size());
    if (key == "name" && field.value().is_string()) {
      name = std::string(field.value().as_string());
    } else if (key == "full" && field.value().is_bool()) {
      full = field.value().as_bool();
    } else if (key == "subset" && field.value().is_object()) {
      subset = &field.value();
    } else if (key == "on_missing" && field.value().is_string()) {
      MOIETY_ASSIGN(on_missing, parse_missing_policy(view(field.value().as_string())));
    } else {
      MOIETY_ASSIGN(const bool known, common.read_field(key, field.value()));
      if (known) continue;
      return fail(
          ErrorCode::kInvalidArgument,
          fmt::format("field '{}' is unknown or of the wrong type; name is a string, full a "
                      "boolean, subset an object (the content of a subset file), on_missing "
                      "a string, operation_id a string, expected_epoch a number, wait a "
                      "boolean",
                      key));
    }
  }
  if (full == (subset != nullptr)) {
    return fail(ErrorCode::kInvalidArgument, "give either \"subset\" or \"full\": true");
  }
  DeployRequest call;
  if (full) {
    call.deployment = full_model(context.model);
    if (!name.empty() && name != context.served_name) {
      MOIETY_TRY(check_deployment_name(name, context.served_name));
      call.deployment.name = std::move(name);
    }
  } else {
    MOIETY_ASSIGN(call.deployment,
                  make_deployment(std::move(name), json::serialize(*subset), context));
  }
  call.deployment.on_missing = on_missing;
  return common.apply(std::move(call));
}

Result<AdminCall> parse_undeploy(std::string_view name,
                                 std::string_view query,
                                 const AdminContext& context) {
  ChangeFields common;
  MOIETY_TRY(common.read_query(query));
  UndeployRequest call;
  if (name != context.served_name) {
    const std::string prefix = context.served_name + ":";
    if (name.starts_with(prefix)) name.remove_prefix(prefix.size());
    MOIETY_TRY(check_deployment_name(name, context.served_name));
    call.name = std::string(name);
  }
  return common.apply(std::move(call));
}

/// The further fields of a change that needs no others; the body may be empty.
Result<ChangeFields> parse_common(std::string_view query, std::string_view body) {
  ChangeFields common;
  MOIETY_TRY(common.read_query(query));
  if (body.empty()) return common;
  MOIETY_ASSIGN(const json::object fields, parse_body(body, "nothing, or {\"operation_id\": ID}"));
  for (const auto& field : fields) {
    const std::string_view key(field.key().data(), field.key().size());
    MOIETY_ASSIGN(const bool known, common.read_field(key, field.value()));
    if (!known) {
      return fail(
          ErrorCode::kInvalidArgument,
          fmt::format("field '{}' is unknown or of the wrong type; operation_id is a string, "
                      "expected_epoch a number, wait a boolean",
                      key));
    }
  }
  return common;
}

/// `rest` is "ID/drain" or "ID/undrain"; nullopt: neither.
Result<std::optional<AdminCall>> parse_worker_call(std::string_view rest,
                                                   std::string_view query,
                                                   std::string_view body) {
  const std::string_view id = rest.substr(0, rest.find('/'));
  const std::string_view verb = rest.substr(std::min(rest.size(), id.size() + 1));
  if (verb != "drain" && verb != "undrain") return std::optional<AdminCall>{};
  WorkerId worker;
  if (!parse_number(id, worker.value)) {
    return fail(ErrorCode::kInvalidArgument, fmt::format("'{}' is not the id of a worker", id));
  }
  MOIETY_ASSIGN(const ChangeFields common, parse_common(query, body));
  if (verb == "drain") return std::optional(common.apply(DrainRequest{{}, worker}));
  return std::optional(common.apply(UndrainRequest{{}, worker}));
}

Result<GetDecisions> parse_decisions(std::string_view query) {
  GetDecisions call;
  constexpr std::string_view kAfter = "after=";
  if (query.empty() ||
      (query.starts_with(kAfter) && parse_number(query.substr(kAfter.size()), call.after)))
    return call;
  return fail(ErrorCode::kInvalidArgument,
              fmt::format("query: '{}' is not understood; only after=N is", query));
}

/// What follows `prefix` and a slash in `path`, or nullopt.
std::optional<std::string_view> below(std::string_view path, std::string_view prefix) {
  if (!path.starts_with(prefix) || !path.substr(prefix.size()).starts_with('/'))
    return std::nullopt;
  return path.substr(prefix.size() + 1);
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
    if (path == "/v1/placement") return AdminCall{GetPlacement{}};
    if (path == "/v1/decisions") {
      MOIETY_ASSIGN(const GetDecisions call, parse_decisions(query));
      return AdminCall{call};
    }
    if (path == "/v1/operations") return AdminCall{GetOperations{}};
    if (const auto id = below(path, "/v1/operations")) {
      MOIETY_ASSIGN(OperationId operation, parse_operation_id(*id));
      return AdminCall{GetOperation{std::move(operation)}};
    }
  }
  if (method == "POST") {
    if (path == kDeployments) return parse_deploy(query, body, context);
    if (path == "/v1/shutdown") return AdminCall{PostShutdown{}};
    if (path == "/v1/rebalance") {
      MOIETY_ASSIGN(const ChangeFields common, parse_common(query, body));
      return common.apply(RebalanceRequest{});
    }
    if (const auto rest = below(path, "/v1/workers")) {
      MOIETY_ASSIGN(auto call, parse_worker_call(*rest, query, body));
      if (call) return std::move(*call);
    }
  }
  if (method == "DELETE") {
    if (const auto name = below(path, kDeployments)) return parse_undeploy(*name, query, context);
  }
  return no_such_endpoint(method, path);
}

std::optional<std::string> may_be_from_a_page(std::string_view host, std::string_view origin) {
  const std::string_view scheme_end = "://";
  const std::size_t scheme = origin.find(scheme_end);
  const bool other_origin = !origin.empty() && (scheme == std::string_view::npos ||
                                                origin.substr(scheme + scheme_end.size()) != host);
  if (other_origin) return "a web page of another origin may not change the cluster";
  const std::string_view name = host.starts_with('[') ? host : host.substr(0, host.find(':'));
  const bool is_address =
      name.starts_with('[') || name.find_first_not_of("0123456789.") == std::string_view::npos;
  if (is_address || http::lower_case(name) == "localhost") return std::nullopt;
  return "changes are asked for at localhost or an address, not at a name: any web page can give "
         "itself a name that leads here (the cluster's token as 'Authorization: Bearer TOKEN' is "
         "taken from anywhere)";
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
  return {"", planner::keep_all(model), false, MissingPolicy::kWait};
}

namespace {

std::string envelope(std::string_view message,
                     int status,
                     json::value code,
                     std::optional<Epoch> epoch = std::nullopt) {
  const char* type = status == 404   ? "not_found_error"
                     : status == 401 ? "authentication_error"
                     : status == 429 ? "rate_limit_error"
                     : status < 500  ? "invalid_request_error"
                                     : "server_error";
  std::string readable;  // messages quote what callers sent, which need not be UTF-8
  append_replacing_invalid(message, readable);
  json::object body{
      {"error",
       {{"message", readable}, {"type", type}, {"param", nullptr}, {"code", std::move(code)}}}};
  if (epoch) body["epoch"] = epoch->value;
  return json::serialize(body);
}

}  // namespace

std::string error_body(const Error& error, std::optional<Epoch> epoch) {
  const ErrorInfo& info = error_info(error.code);
  return envelope(error.message, info.http_status, json::string(info.name.data(), info.name.size()),
                  epoch);
}

std::string error_body(int status, std::string_view message) {
  return envelope(message, status, nullptr);
}

}  // namespace moiety::coordinator
