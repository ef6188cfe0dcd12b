#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/dtype.h"
#include "common/placement.h"
#include "common/result.h"
#include "planner/place.h"

namespace moiety::coordinator {

/// Who starts the workers: this process, on this machine; or somebody else, anywhere.
enum class FleetKind : std::uint8_t { kLocal, kStatic };

/// --deploy NAME=FILE[,on_missing=POLICY]
struct DeployFlag {
  std::string name;
  std::filesystem::path file;
  MissingPolicy on_missing = MissingPolicy::kWait;
};

/// The command line of moiety-coordinator. Empty and 0 mean "work it out" where said so.
struct Options {
  std::filesystem::path model;
  std::string served_name;  ///< empty: the model folder's name
  std::uint32_t workers = 4;
  FleetKind fleet = FleetKind::kLocal;
  std::string fabric = "ucx";        ///< only checked, and told to who starts the workers
  std::int32_t capacity = 0;         ///< 0: ceil(routed experts of the widest layer / workers)
  std::uint64_t capacity_bytes = 0;  ///< of a worker; 0: no limit in bytes
  /// Share of the capacity that a move may exceed it by. Absent: a quarter, and in a static fleet
  /// enough for the others to stand in for one lost worker, since nobody can start it again.
  std::optional<double> move_headroom;
  std::int32_t replicas = 1;
  std::uint64_t router_expert_bytes = 0;  ///< of experts that each router holds itself
  std::int32_t eplb_groups = 1;
  std::int32_t eplb_nodes = 1;
  planner::PlacementPolicy placement = planner::PlacementPolicy::kMembership;
  std::vector<DeployFlag> deploy;
  bool full = true;
  std::string listen_host = "127.0.0.1";
  std::uint16_t listen_port = 0;  ///< 0: a free one
  std::string admin_host = "127.0.0.1";
  std::uint16_t admin_port = 8001;  ///< 0: a free one
  std::uint32_t lease_ttl_ms = 3000;
  std::uint32_t operation_timeout_s = 120;
  std::uint32_t drain_timeout_s = 660;
  std::uint32_t shutdown_grace_s = 15;
  DType dtype = DType::kBF16;         ///< of rows and dense weights
  DType expert_dtype = DType::kBF16;  ///< of the workers' experts
  std::string kernels = "auto";
  std::uint32_t threads_per_worker = 0;  ///< 0: cores / workers, at least 1
  bool restart_workers = true;
  std::filesystem::path worker_binary;  ///< empty: moiety-worker beside this program
  /// How long local workers go on without a coordinator; 0: for ever. Absent: for ever where a
  /// state file lets the next coordinator take them over, else a minute.
  std::optional<std::uint32_t> worker_orphan_timeout_s;
  std::filesystem::path run_dir;  ///< empty: write no coordinator.json
  std::filesystem::path state;  ///< empty: RUN_DIR/state.sqlite; without a run dir nothing is kept
  std::filesystem::path log_dir;     ///< empty: run_dir, or our own stderr without one
  std::filesystem::path token_file;  ///< empty: MOIETY_TOKEN, or a random one
};

/// Reads the command line. nullopt: help was asked for and printed. kInvalidArgument names the
/// flag.
Result<std::optional<Options>> parse_options(int argc, const char* const* argv);

}  // namespace moiety::coordinator
