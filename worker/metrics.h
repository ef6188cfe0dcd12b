#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/registry.h>

#include <mutex>
#include <string>

#include "experts/store.h"
#include "worker/lane_loop.h"

namespace moiety {

/// The worker's /metrics page. Any thread.
class WorkerMetrics {
 public:
  /// Both outlive it.
  WorkerMetrics(const ExpertStore& store, const LaneLoop& loop);
  std::string scrape();

 private:
  prometheus::Gauge& gauge(const char* name, const char* help);
  prometheus::Counter& counter(const char* name, const char* help);

  const ExpertStore& store_;
  const LaneLoop& loop_;
  std::mutex mutex_;
  prometheus::Registry registry_;
  prometheus::Gauge& resident_;
  prometheus::Gauge& experts_;
  prometheus::Counter& read_;
  prometheus::Counter& rows_;
  prometheus::Counter& dispatches_;
  prometheus::Counter& refused_;
  prometheus::Counter& merged_;
  prometheus::Counter& batches_;
  prometheus::Counter& queue_seconds_;
  prometheus::Counter& compute_seconds_;
};

}  // namespace moiety
