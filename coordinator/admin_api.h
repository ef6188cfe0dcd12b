#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "common/placement.h"
#include "common/result.h"
#include "coordinator/events.h"
#include "planner/subset.h"

/// The admin endpoint's requests, as text in and plain values out. No sockets, no state.
namespace moiety::coordinator {

/// What a request is checked against.
struct AdminContext {
  std::string served_name;
  planner::ModelShape model;
};

struct GetHealth {};
struct GetMetrics {};
struct GetStatus {};
struct GetDeployments {};
struct GetPlacement {};
struct GetDecisions {
  std::uint64_t after = 0;  ///< only those with a higher number
};
struct GetOperations {};
struct GetOperation {
  OperationId id;
};
struct PostShutdown {};

/// A change of the cluster, as every one of these can be asked for.
struct AdminChange {
  std::variant<DeployRequest, UndeployRequest, DrainRequest, UndrainRequest, RebalanceRequest>
      request;
  bool wait = true;  ///< answer when it is done
};

using AdminCall = std::variant<GetHealth,
                               GetMetrics,
                               GetStatus,
                               GetDeployments,
                               GetPlacement,
                               GetDecisions,
                               GetOperations,
                               GetOperation,
                               PostShutdown,
                               AdminChange>;

/// Reads one request.
///   path   decoded, without the query
///   query  raw, without '?'
/// kNotFound: no such endpoint (names those there are). kInvalidArgument: the query or the body.
Result<AdminCall> parse_admin_call(std::string_view method,
                                   std::string_view path,
                                   std::string_view query,
                                   std::string_view body,
                                   const AdminContext& context);

/// Where no token is asked for, a browser on this machine could send changes for any web page. Why
/// one with these headers (empty where they are absent) may come from such a page; nullopt: not.
std::optional<std::string> may_be_from_a_page(std::string_view host, std::string_view origin);

/// A deployment's own name: 1 to 64 of A-Z a-z 0-9 . _ - and not the served model's.
Result<void> check_deployment_name(std::string_view name, std::string_view served_name);

/// Builds a deployment from the JSON text of a subset file.
Result<Deployment> make_deployment(std::string name,
                                   std::string_view subset_json,
                                   const AdminContext& context);

/// The full model, under no name of its own ("").
Deployment full_model(const planner::ModelShape& model);

/// {"error":{"message","type","param","code"}}, as OpenAI's API does; with "epoch" beside it (the
/// published one) when one is given.
std::string error_body(const Error& error, std::optional<Epoch> epoch = std::nullopt);
/// The same for a status without an Error.
std::string error_body(int status, std::string_view message);

}  // namespace moiety::coordinator
