#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/run_dir.h"
#include "cli/supervised.h"
#include "common/result.h"

namespace moiety::cli {

struct LocalClusterOptions {
  std::filesystem::path model;  ///< empty: the bundled checkpoint
  std::string served_name;
  std::uint32_t workers = 4;
  std::uint32_t routers = 1;
  std::string fabric = "ucx";        ///< or "mpi": routers and workers under one mpirun
  std::uint32_t capacity = 0;        ///< experts per layer; 0: ceil(routed experts / workers)
  std::uint64_t capacity_bytes = 0;  ///< 0: no limit in bytes
  std::optional<double> move_headroom;
  std::uint32_t replicas = 1;
  std::uint64_t router_expert_bytes = 0;  ///< that each router holds itself
  std::string placement = "membership";
  std::vector<std::string> deployments;  ///< NAME=FILE[,on_missing=POLICY]
  bool full = true;
  std::string combine = "per_worker";
  std::string dtype = "bf16";
  std::string expert_dtype;  ///< as dtype unless given
  std::string kernels = "auto";
  std::string host = "127.0.0.1";
  std::uint16_t port = 8000;  ///< of the first router; 0: free ones
  std::uint16_t admin_port = 8001;
  std::size_t router_threads = 0;  ///< of each; 0: cores / routers
  std::size_t worker_threads = 0;
  std::uint32_t reply_timeout_ms = 10000;
  std::optional<std::uint32_t> least_reply_timeout_ms;  ///< as the router has it unless given
  std::optional<std::uint32_t> hedge_after_ms;          ///< as the router has it unless given
  std::string micro_batches;                            ///< as the router has it unless given
  std::filesystem::path chat_template;
  std::string generation_config;  ///< as the router has it unless given
  bool restart_workers = true;
  std::filesystem::path run_dir;  ///< empty: made below the temporary folder
  bool fresh = false;             ///< forget the cluster that was in the run dir before
  bool detach = false;            ///< the processes go on when this one ends
};

/// A coordinator and routers as child processes; the coordinator starts the workers. With the mpi
/// fabric an mpirun starts routers and workers instead.
///
/// Once it serves, supervise() starts a process again that died, at the same address. The
/// destructor ends all of them. Without `detach` they also end when this process is killed.
class LocalCluster {
 public:
  /// Starts everything and waits until requests are served. Errors carry what the process that
  /// failed wrote last; what was started is ended, and a state that there was not before is
  /// removed, while one that was there stays. kFailedPrecondition: another cluster runs in the run
  /// dir, and nothing of it was touched.
  static Result<LocalCluster> start(const LocalClusterOptions& options, bool progress);
  LocalCluster(LocalCluster&& other) noexcept = default;
  LocalCluster& operator=(LocalCluster&&) = delete;
  ~LocalCluster();

  /// By router.
  const std::vector<std::string>& api_urls() const { return api_urls_; }
  const std::string& admin_url() const { return admin_url_; }
  const std::filesystem::path& run_dir() const { return run_dir_; }
  pid_t coordinator_pid() const { return coordinator_.front().pid(); }
  std::vector<pid_t> router_pids() const { return router_pids_; }
  /// The children of this process that it waits for.
  std::vector<pid_t> child_pids() const;

  /// Whether it goes on: false once the coordinator has ended well (`moiety down`) and the others
  /// too, or had 15 s for it: stop() ends those. Starts again what died; `events` gets a sentence
  /// for people about each death and start. An error: something died too often; the rest is still
  /// there.
  Result<bool> supervise(std::vector<std::string>& events);
  /// Ends everything, in order, with bounded waits. Nothing but the destructor may follow.
  void stop();

 private:
  LocalCluster() = default;
  Result<void> launch(const LocalClusterOptions& options, Progress& progress);
  Result<void> launch_coordinator(const LocalClusterOptions& options);
  Result<void> launch_routers(const LocalClusterOptions& options, const RunFile& info);
  Result<void> launch_world(const LocalClusterOptions& options, const RunFile& info);
  /// A world cannot take in a single process: started again as a whole when its routers are all
  /// dead, or when its workers that are left cannot hold all experts.
  Result<void> supervise_world(Clock::time_point now, std::vector<std::string>& events);
  /// Whether experts have been missing for a while, with workers gone and nothing under way.
  bool world_lacks_workers(Clock::time_point now);
  /// What was known of the processes of a world that has ended, and its segments.
  void forget_world();
  /// The routers that the coordinator knows, by id; false when it does not answer.
  bool find_routers();
  /// Whether the coordinator knows of each of these routers that it uses an epoch.
  bool routers_have_said_so() const;
  /// Writes down which of others_ run now, if that has changed.
  Result<void> note_others();
  /// An error if a process has ended; used while the cluster starts.
  Result<void> check_alive();

  std::filesystem::path model_;
  std::vector<Supervised> coordinator_;  // one, or none before it was started
  std::vector<Supervised> others_;       // routers, or the mpirun of a world
  bool world_ = false;                   // --fabric mpi
  std::uint32_t num_workers_ = 0;        // of a world
  bool restart_workers_ = true;
  Clock::time_point look_at_world_at_;
  std::optional<Clock::time_point> lacking_since_;  // experts are missing
  bool world_was_whole_ = false;                    // since it was started
  std::optional<ScratchDir> segments_;              // of a world, in shared memory
  std::optional<Clock::time_point> end_by_;         // the others, when the coordinator has ended
  std::vector<pid_t> router_pids_;
  std::set<pid_t> former_pids_;  // routers of worlds that have ended
  std::vector<std::string> api_urls_;
  std::string admin_url_;
  std::filesystem::path run_dir_;
  Fd run_dir_lock_;
  bool began_anew_ = false;   // no cluster had left its state in the run dir
  std::vector<pid_t> noted_;  // of others_, as note_others() wrote last
  bool note_failed_ = false;  // the last time
};

/// How long workers and routers go on without a coordinator, as a flag's value.
std::string orphan_timeout_s(const LocalClusterOptions& options);

/// The command line of a router, and of a worker that the coordinator does not start.
std::vector<std::string> router_words(const LocalClusterOptions& options,
                                      const std::filesystem::path& model,
                                      const RunFile& info,
                                      std::uint32_t router);
std::vector<std::string> worker_words(const LocalClusterOptions& options,
                                      const std::filesystem::path& model,
                                      const RunFile& info,
                                      std::uint32_t worker);

/// The checkpoint that comes with Moiety: beside the sources or in share/moiety of the
/// installation.
Result<std::filesystem::path> bundled_model();

}  // namespace moiety::cli
