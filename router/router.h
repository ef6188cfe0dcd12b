#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/dtype.h"
#include "common/result.h"
#include "experts/exchange.h"
#include "router/engine.h"

namespace moiety {

struct RouterOptions {
  std::filesystem::path model;
  std::string served_name;     ///< empty: the model folder's name
  std::string fabric = "ucx";  ///< or "mpi": what carries tokens to the workers
  std::string coordinator;  ///< "host:port"; empty = embedded mode: this process holds the experts
  std::optional<std::uint32_t> id;  ///< absent: the coordinator assigns one
  std::string host = "127.0.0.1";
  std::uint16_t port = 8000;  ///< 0 = a free one
  std::size_t threads = 0;    ///< 0 = one per core
  DType dtype = DType::kBF16;
  std::string expert_dtype;  ///< of routed experts held here: as dtype unless given
  std::string kernels = "auto";
  CombineMode combine = CombineMode::kPerWorker;
  std::uint32_t reply_timeout_ms = 10000;       ///< ReplyLimits::cap
  std::uint32_t least_reply_timeout_ms = 1000;  ///< ReplyLimits::floor
  std::uint32_t hedge_after_ms = 20;            ///< ReplyLimits::hedge_floor
  std::uint32_t request_timeout_s = 600;
  std::uint32_t orphan_timeout_s = 0;  ///< without a coordinator; 0 = for ever
  /// For requests under way when we are told to stop; then they end with an error. Below the
  /// coordinator's own patience (--shutdown-grace-s).
  std::uint32_t stop_grace_s = 10;
  bool expert_metrics = true;
  bool generation_config = true;        ///< the checkpoint's defaults for requests
  std::filesystem::path chat_template;  ///< a file; empty: the checkpoint's own
  EngineOptions engine;
  std::string token;
  /// Embedded mode only: named subsets, and whether the full model is served too.
  std::vector<std::pair<std::string, std::filesystem::path>> deployments;
  bool full = true;
};

/// Runs a router until SIGTERM or SIGINT, or until the coordinator ends it. `on_listening` (may be
/// empty) gets the HTTP port once it answers. Call before any thread is started: it blocks those
/// signals.
Result<void> run_router(const RouterOptions& options,
                        const std::function<void(std::uint16_t port)>& on_listening);

}  // namespace moiety
