#include "coordinator/durable_json.h"

#include <array>
#include <boost/json.hpp>
#include <limits>

namespace moiety::coordinator {

namespace json = boost::json;

namespace {

constexpr std::array<std::string_view, 3> kPolicies = {"wait", "mask", "fail"};

// Reading throws std::exception of Boost.JSON for a missing field or a wrong type; decode() makes
// an error of it. No exception leaves this file.

template <class Int>
Int integer(const json::value& value) {
  return value.to_number<Int>();
}

std::string text(const json::value& value) { return std::string(value.as_string()); }

json::array encode(const Placement& placement) {
  json::array layers;
  for (const auto& layer : placement.owners) {
    json::array experts;
    for (const auto& owners : layer) {
      json::array ids;
      for (WorkerId id : owners) ids.push_back(id.value);
      experts.push_back(std::move(ids));
    }
    layers.push_back(std::move(experts));
  }
  return layers;
}

json::array encode(const std::vector<ExpertId>& experts) {
  json::array all;
  for (const ExpertId& id : experts) all.push_back(json::array{id.layer, id.expert});
  return all;
}

/// The object's "owners" and "router_experts"; files from before there were the latter have none.
Placement decode_placement(const json::value& object) {
  const Epoch epoch{integer<std::uint64_t>(object.at("epoch"))};
  const json::value& owners = object.at("owners");
  Placement placement;
  placement.epoch = epoch;
  for (const json::value& layer : owners.as_array()) {
    auto& experts = placement.owners.emplace_back();
    for (const json::value& ids : layer.as_array()) {
      auto& workers = experts.emplace_back();
      for (const json::value& id : ids.as_array())
        workers.push_back(WorkerId{integer<std::uint32_t>(id)});
    }
  }
  if (const json::value* here = object.as_object().if_contains("router_experts")) {
    for (const json::value& id : here->as_array()) {
      placement.router_experts.push_back(
          {integer<std::int32_t>(id.at(0)), integer<std::int32_t>(id.at(1))});
    }
  }
  return placement;
}

json::array encode(const std::vector<Deployment>& deployments) {
  json::array all;
  for (const Deployment& each : deployments) {
    json::array layers;
    for (const auto& layer : each.kept.layers)
      layers.push_back(json::array(layer.begin(), layer.end()));
    all.push_back(json::object{{"name", each.name},
                               {"full", each.kept.full},
                               {"kept", std::move(layers)},
                               {"draining", each.draining},
                               {"on_missing", json::string(missing_policy_name(each.on_missing))}});
  }
  return all;
}

std::vector<Deployment> decode_deployments(const json::value& value) {
  std::vector<Deployment> all;
  for (const json::value& each : value.as_array()) {
    Deployment& deployment = all.emplace_back();
    deployment.name = text(each.at("name"));
    deployment.kept.full = each.at("full").as_bool();
    for (const json::value& layer : each.at("kept").as_array()) {
      auto& experts = deployment.kept.layers.emplace_back();
      for (const json::value& id : layer.as_array()) experts.push_back(integer<std::int32_t>(id));
    }
    deployment.draining = each.at("draining").as_bool();
    auto policy = parse_missing_policy(text(each.at("on_missing")));
    if (!policy) throw std::invalid_argument(policy.error().message);
    deployment.on_missing = *policy;
  }
  return all;
}

template <class Read>
auto decode(std::string_view text, const Read& read) -> Result<decltype(read(json::value()))> {
  try {
    return read(json::parse(json::string_view(text.data(), text.size())));
  } catch (const std::exception& error) {
    return fail(ErrorCode::kDataLoss, error.what());
  }
}

}  // namespace

std::string_view missing_policy_name(MissingPolicy policy) {
  return kPolicies.at(static_cast<std::size_t>(policy));
}

Result<MissingPolicy> parse_missing_policy(std::string_view name) {
  for (std::size_t i = 0; i < kPolicies.size(); ++i) {
    if (name == kPolicies[i]) return static_cast<MissingPolicy>(i);
  }
  return fail(ErrorCode::kInvalidArgument,
              "on_missing is '" + std::string(name) +
                  "'; it must be wait (bounded by the request's deadline), mask (go on without the "
                  "lost experts) or fail (503)");
}

std::string view_to_json(const EpochView& view) {
  json::array workers;
  for (const WorkerEndpoint& each : view.workers) {
    workers.push_back({{"id", each.id.value},
                       {"incarnation", each.incarnation},
                       {"lane_address", each.lane_address}});
  }
  return json::serialize(json::object{{"epoch", view.placement.epoch.value},
                                      {"owners", encode(view.placement)},
                                      {"router_experts", encode(view.placement.router_experts)},
                                      {"workers", std::move(workers)},
                                      {"deployments", encode(view.deployments)}});
}

Result<EpochView> view_from_json(std::string_view text) {
  return decode(text, [](const json::value& value) {
    EpochView view;
    view.placement = decode_placement(value);
    for (const json::value& each : value.at("workers").as_array()) {
      view.workers.push_back({WorkerId{integer<std::uint32_t>(each.at("id"))},
                              integer<std::uint64_t>(each.at("incarnation")),
                              moiety::coordinator::text(each.at("lane_address"))});
    }
    view.deployments = decode_deployments(value.at("deployments"));
    return view;
  });
}

std::string placement_to_json(const Placement& placement) {
  return json::serialize(json::object{{"epoch", placement.epoch.value},
                                      {"owners", encode(placement)},
                                      {"router_experts", encode(placement.router_experts)}});
}

Result<Placement> placement_from_json(std::string_view text) {
  return decode(text, [](const json::value& value) { return decode_placement(value); });
}

std::string deployments_to_json(const std::vector<Deployment>& deployments) {
  return json::serialize(encode(deployments));
}

Result<std::vector<Deployment>> deployments_from_json(std::string_view text) {
  return decode(text, decode_deployments);
}

}  // namespace moiety::coordinator
