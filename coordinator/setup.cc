#include "coordinator/setup.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <random>

#include "checkpoint/checkpoint.h"
#include "checkpoint/packed_experts.h"
#include "common/address.h"
#include "common/file.h"
#include "common/thread_pool.h"
#include "proto/convert.h"

namespace moiety::coordinator {

namespace {

/// `num_words` * 8 hex digits from the system's random source.
std::string random_hex(int num_words) {
  std::random_device source;
  std::string hex;
  for (int i = 0; i < num_words; ++i) hex += fmt::format("{:08x}", source());
  return hex;
}

planner::ModelShape model_shape(const Checkpoint& checkpoint, DType dtype) {
  const Architecture& architecture = checkpoint.architecture();
  planner::ModelShape shape;
  shape.fingerprint = checkpoint.fingerprint();
  for (std::int32_t layer = 0; layer < architecture.num_layers(); ++layer) {
    const MoeDescription& moe = architecture.layers[static_cast<std::size_t>(layer)].moe;
    shape.layers.push_back({moe.num_routed, moe.num_shared, moe.top_k,
                            packed_expert_bytes(architecture, layer, dtype)});
  }
  return shape;
}

/// The secret that was given; "" when none was.
Result<std::string> given_token(const std::filesystem::path& file) {
  const char* given = std::getenv("MOIETY_TOKEN");
  std::string token = given == nullptr ? "" : given;
  const std::string from = file.empty() ? "MOIETY_TOKEN" : "--token-file " + file.string();
  if (!file.empty()) {
    MOIETY_ASSIGN(token, read_file(file, 4096));
    while (!token.empty() && (token.back() == '\n' || token.back() == '\r')) token.pop_back();
    if (token.empty()) return fail(ErrorCode::kInvalidArgument, from + ": is empty");
  }
  if (token.size() > proto::kMaxNameBytes) {
    return fail(ErrorCode::kInvalidArgument, fmt::format("{}: {} bytes, a secret has at most {}",
                                                         from, token.size(), proto::kMaxNameBytes));
  }
  return token;
}

/// Workers that somebody else starts must show the secret, so somebody must be able to know it.
Result<void> check_can_be_joined(const Options& options, const std::string& token) {
  if (options.fleet == FleetKind::kLocal || !token.empty() || !options.run_dir.empty()) return {};
  std::error_code unreadable;  // that is said where it is opened
  const bool goes_on = !options.state.empty() && std::filesystem::exists(options.state, unreadable);
  if (goes_on) return {};  // with the secret of its first start
  return fail(
      ErrorCode::kInvalidArgument,
      "--fleet static: workers and routers must show the cluster's secret: set MOIETY_TOKEN "
      "or give --token-file FILE, the same for every process (or --run-dir DIR, whose "
      "coordinator.json names a random one)");
}

/// Whoever is on another host can send us anything: there the secret must be one that was agreed
/// on.
Result<void> check_reachable_by_friends_only(const Options& options, const std::string& token) {
  if (!token.empty()) return {};
  for (const auto& [flag, host] :
       {std::pair("--listen", options.listen_host), {"--admin-host", options.admin_host}}) {
    if (is_loopback(host)) continue;
    return fail(ErrorCode::kInvalidArgument,
                fmt::format("{} {}: other hosts can connect there, so the cluster needs a secret "
                            "that you choose: set MOIETY_TOKEN or give --token-file FILE, the same "
                            "for every process",
                            flag, host));
  }
  return {};
}

double default_headroom(const Options& options) {
  if (options.move_headroom) return *options.move_headroom;
  constexpr double kQuarter = 0.25;
  if (options.fleet == FleetKind::kLocal || options.workers < 2) return kQuarter;
  // A little more than its share: experts are whole.
  return std::max(kQuarter, 1.1 / (options.workers - 1));
}

/// Opens the state file and takes from it what makes us the coordinator that was there before.
Result<void> open_store(const Options& options, const std::string& token, Setup& setup) {
  ClusterConfig& cluster = setup.cluster;
  std::filesystem::path file = options.state;
  if (file.empty() && !options.run_dir.empty()) file = options.run_dir / "state.sqlite";
  cluster.token = token;
  if (!file.empty()) {
    MOIETY_ASSIGN(Store store, Store::open(file, cluster.model.fingerprint));
    if (store.restored()) {
      if (auto fits = ClusterState::check_restorable(cluster, *store.restored()); !fits)
        return with_context(file.string(), fits.error());
    }
    if (cluster.token.empty()) cluster.token = store.identity().token;
    setup.store.emplace(std::move(store));
  }
  if (cluster.token.empty()) cluster.token = random_hex(8);
  return {};
}

Result<std::string> find_worker_binary(const std::filesystem::path& given) {
  std::filesystem::path path = given;
  if (path.empty()) {
    std::error_code error;
    path = std::filesystem::read_symlink("/proc/self/exe", error).parent_path() / "moiety-worker";
  }
  if (::access(path.c_str(), X_OK) != 0 || std::filesystem::is_directory(path)) {
    return fail(ErrorCode::kNotFound,
                path.string() + ": is no program that can be started; give --worker-binary");
  }
  return std::filesystem::absolute(path).string();
}

Result<std::vector<Deployment>> first_deployments(const Options& options,
                                                  const AdminContext& context) {
  std::vector<Deployment> first;
  if (options.full) first.push_back(full_model(context.model));
  for (const auto& [name, file, on_missing] : options.deploy) {
    MOIETY_ASSIGN(const std::string text, read_file(file));
    auto deployment = make_deployment(name, text, context);
    if (!deployment)
      return with_context("--deploy " + name + "=" + file.string(), deployment.error());
    deployment->on_missing = on_missing;
    const bool taken = std::any_of(first.begin(), first.end(),
                                   [&](const Deployment& each) { return each.name == name; });
    if (taken)
      return fail(ErrorCode::kAlreadyExists, "--deploy " + name + ": the name is given twice");
    first.push_back(std::move(*deployment));
  }
  return first;
}

}  // namespace

Result<Setup> prepare(const Options& options) {
  Setup setup;
  MOIETY_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(options.model));
  const std::int32_t max_routed = checkpoint.architecture().max_routed();
  if (max_routed == 0) {
    return fail(
        ErrorCode::kInvalidArgument,
        options.model.string() + ": has no routed experts; serve it in one process (moiety serve)");
  }
  setup.model = std::filesystem::canonical(options.model);

  ClusterConfig& cluster = setup.cluster;
  cluster.model = model_shape(checkpoint, options.expert_dtype);
  cluster.served_name =
      options.served_name.empty() ? setup.model.filename().string() : options.served_name;
  cluster.coordinator_instance = random_hex(2);
  MOIETY_ASSIGN(const std::string token, given_token(options.token_file));
  MOIETY_TRY(check_reachable_by_friends_only(options, token));
  MOIETY_TRY(check_can_be_joined(options, token));
  cluster.max_workers = options.workers;
  cluster.static_fleet = options.fleet == FleetKind::kStatic;
  cluster.replicas = options.replicas;
  cluster.router_expert_bytes = options.router_expert_bytes;
  cluster.capacity_bytes = options.capacity_bytes;
  cluster.move_headroom = default_headroom(options);
  cluster.eplb_groups = options.eplb_groups;
  cluster.eplb_nodes = options.eplb_nodes;
  // Just enough for the full model and its copies; where bytes are given they alone count.
  const auto workers = static_cast<std::int32_t>(options.workers);
  const std::int32_t copies = max_routed * std::min(options.replicas, workers);
  cluster.capacity_per_layer = options.capacity > 0         ? options.capacity
                               : options.capacity_bytes > 0 ? 0
                                                            : (copies + workers - 1) / workers;
  cluster.policy = options.placement;
  cluster.restart_workers = options.restart_workers;
  cluster.lease_ttl = std::chrono::milliseconds(options.lease_ttl_ms);
  cluster.operation_timeout = std::chrono::seconds(options.operation_timeout_s);
  cluster.drain_timeout = std::chrono::seconds(options.drain_timeout_s);
  cluster.shutdown_grace = std::chrono::seconds(options.shutdown_grace_s);
  cluster.first_incarnation =
      static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(
                                     std::chrono::system_clock::now().time_since_epoch())
                                     .count());

  MOIETY_ASSIGN(setup.first, first_deployments(options, {cluster.served_name, cluster.model}));
  if (options.fleet == FleetKind::kLocal) {
    MOIETY_ASSIGN(setup.worker_binary, find_worker_binary(options.worker_binary));
  }
  MOIETY_TRY(open_store(options, token, setup));
  if (!options.log_dir.empty()) {
    std::error_code error;
    std::filesystem::create_directories(options.log_dir, error);
    if (error)
      return fail(ErrorCode::kIo, "--log-dir " + options.log_dir.string() + ": " + error.message());
  }
  setup.threads_per_worker = options.threads_per_worker;
  if (setup.threads_per_worker == 0) {
    setup.threads_per_worker = static_cast<std::uint32_t>(share_of_cores(options.workers));
  }
  return setup;
}

LocalFleet::Options local_workers(const Options& options,
                                  const Setup& setup,
                                  std::string control_address) {
  LocalFleet::Options fleet;
  const bool kept = !options.state.empty() || !options.run_dir.empty();
  const std::uint32_t orphan_timeout_s = options.worker_orphan_timeout_s.value_or(kept ? 0 : 60);
  const std::vector<std::string> fixed = {setup.worker_binary,
                                          "--coordinator",
                                          std::move(control_address),
                                          "--model",
                                          setup.model.string(),
                                          "--threads",
                                          std::to_string(setup.threads_per_worker),
                                          "--dtype",
                                          std::string(dtype_flag(options.dtype)),
                                          "--expert-dtype",
                                          std::string(dtype_flag(options.expert_dtype)),
                                          "--kernels",
                                          options.kernels,
                                          "--orphan-timeout",
                                          std::to_string(orphan_timeout_s)};
  fleet.command = [fixed](WorkerId worker, std::uint64_t incarnation) {
    std::vector<std::string> command = fixed;
    command.insert(command.end(), {"--id", std::to_string(worker.value), "--incarnation",
                                   std::to_string(incarnation)});
    return command;
  };
  fleet.environment = {"MOIETY_TOKEN=" + setup.cluster.token};
  const std::filesystem::path& log_dir =
      options.log_dir.empty() ? options.run_dir : options.log_dir;
  if (!log_dir.empty()) fleet.log_dir = log_dir;
  return fleet;
}

}  // namespace moiety::coordinator
