#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "common/ids.h"

namespace moiety {

/// The routed experts that a deployment keeps: `layers[l]` lists original expert ids in ascending
/// order, shared experts *excluded*; empty for a dense layer. `full` means every routed expert
/// (then `layers` still lists them all).
struct KeptExperts {
  bool full = false;
  std::vector<std::vector<std::int32_t>> layers;
  bool operator==(const KeptExperts&) const = default;
};

/// What a request does while experts that it needs are on no reachable worker.
enum class MissingPolicy : std::uint8_t {
  kWait,  ///< waits, bounded by the request's deadline
  kMask,  ///< goes on without them, and the response says so
  kFail,  ///< ends with kWorkerLost (503)
};

/// A served name. `name` is empty for the full model (served as MODEL), else the part after the
/// colon of MODEL:NAME.
struct Deployment {
  std::string name;
  KeptExperts kept;
  bool draining =
      false;  ///< new requests get 404, running ones finish; its experts stay until then
  MissingPolicy on_missing = MissingPolicy::kWait;
  bool operator==(const Deployment&) const = default;
};

/// Which workers hold each routed expert, for one epoch. Immutable once published.
/// `owners[l][e]` are the workers that hold expert e of layer l, ascending; empty when no
/// deployment needs it (or the layer is dense), or when routers hold it and no worker does.
struct Placement {
  Epoch epoch;
  std::vector<std::vector<std::vector<WorkerId>>> owners;
  std::vector<ExpertId> router_experts = {};  ///< that every router holds itself; ascending
  bool operator==(const Placement&) const = default;

  /// The experts of one worker in (layer, expert) order.
  std::vector<ExpertId> experts_of(WorkerId worker) const {
    std::vector<ExpertId> experts;
    for (std::size_t layer = 0; layer < owners.size(); ++layer) {
      for (std::size_t expert = 0; expert < owners[layer].size(); ++expert) {
        for (WorkerId owner : owners[layer][expert]) {
          if (owner == worker) {
            experts.push_back(
                {static_cast<std::int32_t>(layer), static_cast<std::int32_t>(expert)});
          }
        }
      }
    }
    return experts;
  }

  /// Every worker that holds an expert.
  std::set<WorkerId> workers() const {
    std::set<WorkerId> all;
    for (const auto& layer : owners) {
      for (const auto& expert : layer) all.insert(expert.begin(), expert.end());
    }
    return all;
  }
};

/// How to reach one worker's lane.
struct WorkerEndpoint {
  WorkerId id;
  std::uint64_t incarnation = 0;  ///< differs between restarts of the same worker id
  std::string lane_address;  ///< opaque to all but the fabric that made it, e.g. "127.0.0.1:4711"
  bool operator==(const WorkerEndpoint&) const = default;
};

/// What the coordinator publishes to routers: one epoch, all that a router needs to serve it.
/// Workers of the placement that are missing from `workers` are lost (or not back yet).
struct EpochView {
  Placement placement;
  std::vector<WorkerEndpoint> workers;
  std::vector<Deployment> deployments;
  bool operator==(const EpochView&) const = default;
};

}  // namespace moiety
