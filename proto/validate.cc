#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "proto/convert.h"

namespace moiety::proto {
namespace {

Error invalid(std::string message) { return fail(ErrorCode::kInvalidArgument, std::move(message)); }

Result<void> check_size(std::string_view field, std::size_t size, std::size_t limit) {
  if (size <= limit) return {};
  return invalid(fmt::format("{}: {} is more than {}", field, size, limit));
}

Result<void> check_duration(std::string_view field, std::chrono::milliseconds duration) {
  if (duration.count() >= 0 && duration <= kMaxDuration) return {};
  return invalid(fmt::format("{}: {} ms is out of range", field, duration.count()));
}

template <class T>
Result<void> check_ascending(std::string_view field, const std::vector<T>& values) {
  if (std::adjacent_find(values.begin(), values.end(), std::greater_equal<>()) == values.end()) {
    return {};
  }
  return invalid(fmt::format("{}: not in ascending order, or one appears twice", field));
}

Result<void> check_expert(std::string_view field, std::int32_t expert) {
  if (expert >= 0 && static_cast<std::size_t>(expert) < kMaxExpertsPerLayer) return {};
  return invalid(fmt::format("{}: no expert can have the id {}", field, expert));
}

Result<void> check_experts(std::string_view field, const std::vector<ExpertId>& experts) {
  MOIETY_TRY(check_size(field, experts.size(), kMaxExperts));
  MOIETY_TRY(check_ascending(field, experts));
  for (const ExpertId& id : experts) {
    if (id.layer < 0 || static_cast<std::size_t>(id.layer) >= kMaxLayers) {
      return invalid(fmt::format("{}: no layer can have the number {}", field, id.layer));
    }
    MOIETY_TRY(check_expert(field, id.expert));
  }
  return {};
}

Result<void> check_placement(const Placement& placement) {
  MOIETY_TRY(check_size("placement layers", placement.owners.size(), kMaxLayers));
  std::size_t num_experts = 0;
  for (const auto& layer : placement.owners) {
    MOIETY_TRY(check_size("placement experts of a layer", layer.size(), kMaxExpertsPerLayer));
    num_experts += layer.size();
    for (const auto& owners : layer) {
      MOIETY_TRY(check_size("placement owners", owners.size(), kMaxWorkers));
      MOIETY_TRY(check_ascending("placement owners", owners));
    }
  }
  MOIETY_TRY(check_size("placement experts", num_experts, kMaxExperts));
  MOIETY_TRY(check_experts("router_experts", placement.router_experts));
  for (const ExpertId& id : placement.router_experts) {
    const auto layer = static_cast<std::size_t>(id.layer);
    if (layer >= placement.owners.size() ||
        static_cast<std::size_t>(id.expert) >= placement.owners[layer].size()) {
      return invalid(fmt::format("router_experts: the placement has no expert {} of layer {}",
                                 id.expert, id.layer));
    }
  }
  return {};
}

/// Every kept expert must exist in the placement (unless that has no layers yet).
Result<void> check_deployment(const Deployment& deployment, const Placement& placement) {
  MOIETY_TRY(check_size("deployment name", deployment.name.size(), kMaxNameBytes));
  const auto& layers = deployment.kept.layers;
  MOIETY_TRY(check_size("deployment layers", layers.size(), kMaxLayers));
  if (!placement.owners.empty() && layers.size() != placement.owners.size()) {
    return invalid(fmt::format("deployment '{}' has {} layers, the placement {}", deployment.name,
                               layers.size(), placement.owners.size()));
  }
  for (std::size_t l = 0; l < layers.size(); ++l) {
    MOIETY_TRY(check_ascending("deployment experts", layers[l]));
    if (layers[l].empty()) continue;
    MOIETY_TRY(check_expert("deployment experts", layers[l].front()));
    MOIETY_TRY(check_expert("deployment experts", layers[l].back()));
    if (!placement.owners.empty() &&
        static_cast<std::size_t>(layers[l].back()) >= placement.owners[l].size()) {
      return invalid(fmt::format("deployment '{}' keeps expert {} of layer {}, which has {}",
                                 deployment.name, layers[l].back(), l, placement.owners[l].size()));
    }
  }
  return {};
}

Result<void> check(const Hello& hello) {
  if (hello.role != Role::kWorker && hello.role != Role::kRouter && hello.role != Role::kAdmin) {
    return invalid(fmt::format("role: {} is unknown", static_cast<int>(hello.role)));
  }
  if (hello.pid < 0) return invalid("pid: negative");
  MOIETY_TRY(check_size("token bytes", hello.token.size(), kMaxNameBytes));
  MOIETY_TRY(check_size("build bytes", hello.build.size(), kMaxNameBytes));
  MOIETY_TRY(check_size("fingerprint bytes", hello.fingerprint.size(), kMaxNameBytes));
  MOIETY_TRY(check_size("lane_address bytes", hello.lane_address.size(), kMaxAddressBytes));
  MOIETY_TRY(check_size("http_address bytes", hello.http_address.size(), kMaxAddressBytes));
  return check_experts("resident", hello.resident);
}

Result<void> check(const Welcome& welcome) {
  MOIETY_TRY(
      check_size("coordinator_instance bytes", welcome.coordinator_instance.size(), kMaxNameBytes));
  MOIETY_TRY(check_duration("lease_ttl", welcome.lease_ttl));
  return check_duration("heartbeat_interval", welcome.heartbeat_interval);
}

Result<void> check(const LoadExperts& load) { return check_experts("experts", load.experts); }
Result<void> check(const DropExperts& drop) { return check_experts("keep", drop.keep); }

Result<void> check(const PublishEpoch& publish) {
  const EpochView& view = publish.view;
  MOIETY_TRY(check_placement(view.placement));
  MOIETY_TRY(check_size("workers", view.workers.size(), kMaxWorkers));
  std::set<WorkerId> workers;
  for (const WorkerEndpoint& worker : view.workers) {
    MOIETY_TRY(check_size("lane_address bytes", worker.lane_address.size(), kMaxAddressBytes));
    if (!workers.insert(worker.id).second) {
      return invalid(fmt::format("workers: {} appears twice", worker.id.value));
    }
  }
  MOIETY_TRY(check_size("deployments", view.deployments.size(), kMaxDeployments));
  std::set<std::string_view> names;
  for (const Deployment& deployment : view.deployments) {
    MOIETY_TRY(check_deployment(deployment, view.placement));
    if (!names.insert(deployment.name).second) {
      return invalid(fmt::format("deployments: '{}' appears twice", deployment.name));
    }
  }
  return {};
}

Result<void> check(const EpochActive& active) {
  MOIETY_TRY(check_size("lost_workers", active.lost_workers.size(), kMaxWorkers));
  return check_ascending("lost_workers", active.lost_workers);
}

Result<void> check(const RouterHeartbeat& heartbeat) {
  const auto& running = heartbeat.stats.running_per_deployment;
  MOIETY_TRY(check_size("running_per_deployment", running.size(), kMaxDeployments));
  for (const auto& [name, count] : running) {
    MOIETY_TRY(check_size("deployment name", name.size(), kMaxNameBytes));
  }
  return {};
}

Result<void> check(const ExpertLoad& load) {
  MOIETY_TRY(check_size("layers", load.tokens.size(), kMaxLayers));
  std::size_t num_experts = 0;
  for (const auto& layer : load.tokens) {
    MOIETY_TRY(check_size("experts of a layer", layer.size(), kMaxExpertsPerLayer));
    num_experts += layer.size();
  }
  return check_size("experts", num_experts, kMaxExperts);
}

// Numbers of any value and text that encode() cuts.
Result<void> check(const Refuse&) { return {}; }
Result<void> check(const WorkerHeartbeat&) { return {}; }
Result<void> check(const ExpertsReady&) { return {}; }
Result<void> check(const Shutdown&) { return {}; }
Result<void> check(const WorkerSuspect&) { return {}; }

constexpr std::string_view kNames[] = {
    "Hello",           "Welcome",       "Refuse",    "WorkerHeartbeat", "LoadExperts",
    "ExpertsReady",    "DropExperts",   "Shutdown",  "PublishEpoch",    "EpochActive",
    "RouterHeartbeat", "WorkerSuspect", "ExpertLoad"};
static_assert(std::size(kNames) == std::variant_size_v<ControlMessage>);

}  // namespace

Result<void> validate(const ControlMessage& message) {
  const Result<void> checked = std::visit([](const auto& m) { return check(m); }, message);
  if (!checked) return with_context(kNames[message.index()], checked.error());
  return {};
}

}  // namespace moiety::proto
