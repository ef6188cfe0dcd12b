#include "coordinator/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <array>
#include <map>

namespace moiety::coordinator {

std::string metrics_text(const ClusterStatus& status) {
  prometheus::Registry registry;
  const auto gauge = [&registry](const char* name, const char* help, double value) {
    prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add({}).Set(value);
  };
  const auto counter = [&registry](const char* name, const char* help, double value) {
    prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add({}).Increment(value);
  };

  gauge("moiety_coordinator_epoch", "Number of the published epoch",
        static_cast<double>(status.epoch.value));
  gauge("moiety_fleet_expert_bytes_resident", "Expert bytes in memory, all workers together",
        static_cast<double>(status.bytes_resident));
  gauge("moiety_fleet_experts_resident", "Experts in memory, all workers together",
        static_cast<double>(status.experts_resident));
  gauge("moiety_deployments", "Deployments served or draining",
        static_cast<double>(status.deployments.size()));
  gauge("moiety_routers", "Connected routers", static_cast<double>(status.routers.size()));
  counter("moiety_epoch_changes_total", "Epochs published",
          static_cast<double>(status.epoch_changes));
  counter("moiety_worker_losses_total", "Workers that ended against our will",
          static_cast<double>(status.worker_losses));
  counter("moiety_worker_restarts_total", "Lost workers that were started again",
          static_cast<double>(status.worker_restarts));

  auto& workers =
      prometheus::BuildGauge().Name("moiety_workers").Help("Workers by state").Register(registry);
  constexpr std::array kStates = {WorkerState::kStarting, WorkerState::kLoading,
                                  WorkerState::kServing, WorkerState::kLost,
                                  WorkerState::kStopping};
  std::map<WorkerState, int> counts;
  for (const WorkerStatus& each : status.workers) ++counts[each.state];
  for (WorkerState state : kStates) {
    workers.Add({{"state", std::string(worker_state_name(state))}}).Set(counts[state]);
  }
  return prometheus::TextSerializer().Serialize(registry.Collect());
}

}  // namespace moiety::coordinator
