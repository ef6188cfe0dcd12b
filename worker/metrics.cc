#include "worker/metrics.h"

#include <prometheus/text_serializer.h>

namespace moiety {
namespace {

void advance(prometheus::Counter& counter, double value) {
  counter.Increment(value - counter.Value());
}

double seconds(std::uint64_t ns) { return static_cast<double>(ns) * 1e-9; }

}  // namespace

WorkerMetrics::WorkerMetrics(const ExpertStore& store, const LaneLoop& loop)
    : store_(store),
      loop_(loop),
      resident_(gauge("moiety_expert_bytes_resident", "Bytes of packed expert weights held now")),
      experts_(gauge("moiety_experts_resident", "Routed experts held now, over all layers")),
      read_(
          counter("moiety_expert_bytes_read_total", "Bytes read from the checkpoint for experts")),
      rows_(counter("moiety_expert_rows_total", "(token, expert) pairs computed")),
      dispatches_(counter("moiety_dispatches_total", "Dispatch messages answered")),
      refused_(
          counter("moiety_dispatches_refused_total", "Dispatch messages answered with an error")),
      merged_(counter("moiety_dispatches_merged_total",
                      "Dispatch messages that were computed together with others")),
      batches_(counter("moiety_expert_batches_total", "Runs of the expert kernels")),
      queue_seconds_(counter("moiety_dispatch_queue_seconds_total",
                             "Time from a dispatch's arrival to the start of its batch")),
      compute_seconds_(
          counter("moiety_expert_compute_seconds_total", "Time in the expert kernels")) {}

std::string WorkerMetrics::scrape() {
  const std::lock_guard lock(mutex_);
  const LaneLoop::Counters counters = loop_.counters();
  resident_.Set(static_cast<double>(store_.bytes_resident()));
  experts_.Set(static_cast<double>(store_.num_experts()));
  advance(read_, static_cast<double>(store_.bytes_read()));
  advance(rows_, static_cast<double>(counters.pairs));
  advance(dispatches_, static_cast<double>(counters.dispatches));
  advance(refused_, static_cast<double>(counters.refused));
  advance(merged_, static_cast<double>(counters.merged));
  advance(batches_, static_cast<double>(counters.batches));
  advance(queue_seconds_, seconds(counters.queue_ns));
  advance(compute_seconds_, seconds(counters.compute_ns));
  return prometheus::TextSerializer().Serialize(registry_.Collect());
}

prometheus::Gauge& WorkerMetrics::gauge(const char* name, const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry_).Add({});
}

prometheus::Counter& WorkerMetrics::counter(const char* name, const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry_).Add({});
}

}  // namespace moiety
