#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "common/dtype.h"
#include "common/result.h"

namespace moiety {

struct WorkerOptions {
  std::string coordinator;  ///< "host:port"
  std::filesystem::path model;
  /// Absent: the coordinator assigns one.
  std::optional<std::uint32_t> id;
  /// Absent: the time of the start, so that every start of one id differs from those before.
  std::optional<std::uint64_t> incarnation;
  std::string fabric = "ucx";           ///< or "mpi"
  std::string bind_host = "127.0.0.1";  ///< of the lane's port and of /metrics
  std::uint16_t http_port = 0;          ///< of /metrics and /health; 0 = a free one
  std::size_t threads = 0;              ///< 0 = one per core
  DType expert_dtype = DType::kBF16;
  std::string kernels = "auto";
  std::uint64_t capacity_bytes = 0;  ///< of packed experts; 0: as the coordinator is set
  std::string token;                 ///< the cluster's secret
  std::uint32_t orphan_timeout_s = 0;
};

/// Runs a worker until the coordinator ends it, SIGTERM or SIGINT comes, or the coordinator has
/// been gone too long. Call before any thread is started: it blocks those signals.
Result<void> run_worker(const WorkerOptions& options);

}  // namespace moiety
