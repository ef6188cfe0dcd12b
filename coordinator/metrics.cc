#include "coordinator/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>

#include "coordinator/status_json.h"

namespace moiety::coordinator {

namespace {

using Labels = std::map<std::string, std::string>;

/// Families of one page: one series each, or one for each set of labels.
class Page {
 public:
  class Gauges {
   public:
    explicit Gauges(prometheus::Family<prometheus::Gauge>& family) : family_(family) {}
    void set(const Labels& labels, double value) { family_.Add(labels).Set(value); }

   private:
    prometheus::Family<prometheus::Gauge>& family_;
  };
  class Counters {
   public:
    explicit Counters(prometheus::Family<prometheus::Counter>& family) : family_(family) {}
    void set(const Labels& labels, double value) { family_.Add(labels).Increment(value); }

   private:
    prometheus::Family<prometheus::Counter>& family_;
  };

  Gauges gauges(const char* name, const char* help) {
    return Gauges(prometheus::BuildGauge().Name(name).Help(help).Register(registry_));
  }
  Counters counters(const char* name, const char* help) {
    return Counters(prometheus::BuildCounter().Name(name).Help(help).Register(registry_));
  }
  template <class Number>
  void gauge(const char* name, const char* help, Number value) {
    gauges(name, help).set({}, static_cast<double>(value));
  }
  template <class Number>
  void counter(const char* name, const char* help, Number value) {
    counters(name, help).set({}, static_cast<double>(value));
  }
  void persists(const RuntimeCounts& counts) {
    auto& histogram = prometheus::BuildHistogram()
                          .Name("moiety_coordinator_persist_seconds")
                          .Help("Time to write a change of the state to the disk")
                          .Register(registry_)
                          .Add({}, prometheus::Histogram::BucketBoundaries(counts.kBounds.begin(),
                                                                           counts.kBounds.end()));
    histogram.ObserveMultiple({counts.persists.begin(), counts.persists.end()},
                              counts.persist_seconds);
  }
  std::string text() { return prometheus::TextSerializer().Serialize(registry_.Collect()); }

 private:
  prometheus::Registry registry_;
};

void add_cluster(Page& page, const ClusterStatus& status) {
  page.gauge("moiety_coordinator_epoch", "Number of the published epoch", status.epoch.value);
  page.gauge("moiety_coordinator_epochs_in_use", "Epochs that some router may use",
             status.epochs.size());
  page.gauge("moiety_cluster_ready",
             "1: a router serves, and every expert that is needed is on a worker that serves",
             status.ready ? 1 : 0);
  page.gauge("moiety_fleet_expert_bytes_resident", "Expert bytes in memory, all workers together",
             status.bytes_resident);
  page.gauge("moiety_fleet_experts_resident", "Experts in memory, all workers together",
             status.experts_resident);
  page.gauge("moiety_experts_missing", "Experts that are needed and on no worker that serves",
             status.experts_missing);
  page.gauge("moiety_replicas_missing", "Copies of experts that there is no room or worker for",
             status.replicas_missing);
  page.gauge("moiety_deployments", "Deployments served or draining", status.deployments.size());
  page.gauge("moiety_routers", "Connected routers",
             std::count_if(status.routers.begin(), status.routers.end(),
                           [](const RouterStatus& each) { return each.connected; }));
  page.gauge("moiety_router_experts", "Experts that every router shall hold itself",
             status.router_experts);
  auto held = page.gauges("moiety_router_expert_bytes", "Bytes of the experts that it holds");
  for (const RouterStatus& each : status.routers)
    held.set({{"router", std::to_string(each.id.value)}},
             static_cast<double>(each.stats.bytes_resident));
  page.gauge("moiety_operations_waiting", "Changes that wait for the one that runs",
             status.queued_operations);
  auto operations = page.counters("moiety_operations_total", "Changes that ended");
  for (const auto& [key, count] : status.operations_ended) {
    operations.set({{"kind", std::string(operation_kind_name(key.first))},
                    {"result", key.second ? "succeeded" : "failed"}},
                   static_cast<double>(count));
  }
  page.counter("moiety_move_experts_loaded_total", "Experts that changes made workers read",
               status.moved.experts_loaded);
  page.counter("moiety_move_bytes_loaded_total", "Their bytes", status.moved.bytes_loaded);
  page.counter("moiety_move_bytes_dropped_total", "Bytes that changes made workers drop",
               status.moved.bytes_dropped);
  page.counter("moiety_epoch_changes_total", "Epochs published", status.epoch_changes);
  page.counter("moiety_worker_losses_total", "Workers that ended against our will",
               status.worker_losses);
  page.counter("moiety_worker_restarts_total", "Lost workers that were started again",
               status.worker_restarts);
}

void add_workers(Page& page, const ClusterStatus& status) {
  auto states = page.gauges("moiety_workers", "Workers by state");
  constexpr std::array kStates = {
      WorkerState::kStarting, WorkerState::kLoading, WorkerState::kServing, WorkerState::kLost,
      WorkerState::kStopping, WorkerState::kIdle,    WorkerState::kAbsent};
  for (WorkerState state : kStates) {
    const auto count = std::count_if(status.workers.begin(), status.workers.end(),
                                     [state](const auto& each) { return each.state == state; });
    states.set({{"state", std::string(worker_state_name(state))}}, static_cast<double>(count));
  }
  auto bytes = page.gauges("moiety_worker_expert_bytes", "Bytes of the experts that it holds");
  auto capacity = page.gauges("moiety_worker_capacity_bytes", "Bytes of experts that it may hold");
  auto load = page.gauges("moiety_worker_load_share",
                          "Share of the observed load of experts that falls to this worker as "
                          "they are placed");
  auto losses = page.counters("moiety_worker_id_losses_total", "Losses under this id");
  for (const WorkerStatus& each : status.workers) {
    const Labels labels{{"worker", std::to_string(each.id.value)}};
    bytes.set(labels, static_cast<double>(each.bytes));
    if (each.capacity_bytes != 0) capacity.set(labels, static_cast<double>(each.capacity_bytes));
    load.set(labels, each.load);
    losses.set(labels, static_cast<double>(each.losses));
  }
}

void add_counts(Page& page, const RuntimeCounts& counts) {
  page.counter("moiety_changes_refused_total", "Changes that were refused before they began",
               counts.refused_changes);
  auto decisions =
      page.counters("moiety_coordinator_decisions_total", "Lines of the log of decisions");
  for (LogLevel level : {LogLevel::kInfo, LogLevel::kWarning, LogLevel::kError}) {
    const auto found = counts.decisions.find(level);
    decisions.set({{"level", std::string(level_name(level))}},
                  found == counts.decisions.end() ? 0 : static_cast<double>(found->second));
  }
  page.counter("moiety_workers_adopted_total", "Workers of an earlier coordinator taken over",
               counts.workers_adopted);
  page.counter("moiety_coordinator_persist_failures_total",
               "Writes of the state that failed (a full disk)", counts.persist_failures);
  page.persists(counts);
}

}  // namespace

void RuntimeCounts::add_persist(std::chrono::duration<double> took) {
  const auto bound = std::lower_bound(kBounds.begin(), kBounds.end(), took.count());
  ++persists[static_cast<std::size_t>(bound - kBounds.begin())];
  persist_seconds += took.count();
}

std::string metrics_text(const ClusterStatus& status, const RuntimeCounts& counts) {
  Page page;
  add_cluster(page, status);
  add_workers(page, status);
  add_counts(page, counts);
  return page.text();
}

}  // namespace moiety::coordinator
