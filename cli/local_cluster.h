#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/process.h"
#include "common/result.h"

namespace moiety::cli {

struct LocalClusterOptions {
  std::filesystem::path model;  ///< empty: the bundled checkpoint
  std::string served_name;
  std::uint32_t workers = 4;
  std::uint32_t capacity = 0;  ///< 0: ceil(routed experts / workers)
  std::string placement = "membership";
  std::vector<std::string> deployments;  ///< NAME=FILE
  bool full = true;
  std::string combine = "per_worker";
  std::string dtype = "bf16";
  std::string expert_dtype;  ///< as dtype unless given
  std::string kernels = "auto";
  std::string host = "127.0.0.1";
  std::uint16_t port = 8000;
  std::uint16_t admin_port = 8001;
  std::size_t router_threads = 0;
  std::size_t worker_threads = 0;
  std::uint32_t reply_timeout_ms = 10000;
  bool restart_workers = true;
  std::filesystem::path run_dir;  ///< empty: made below the temporary folder
  bool detach = false;            ///< the processes go on when this one ends
};

/// A coordinator and a router as child processes; the coordinator starts the workers.
/// The destructor ends them, unless release() was called. Without `detach` they also end when this
/// process is killed.
class LocalCluster {
 public:
  /// Starts both and waits until requests are served. Errors carry what the process that failed
  /// wrote last. kFailedPrecondition: another cluster runs in the run dir, and nothing of it was
  /// touched.
  static Result<LocalCluster> start(const LocalClusterOptions& options, bool progress);
  LocalCluster(LocalCluster&& other) noexcept;
  LocalCluster& operator=(LocalCluster&&) = delete;
  ~LocalCluster();

  const std::string& api_url() const { return api_url_; }
  const std::string& admin_url() const { return admin_url_; }
  const std::filesystem::path& run_dir() const { return run_dir_; }
  pid_t coordinator_pid() const { return coordinator_; }
  pid_t router_pid() const { return router_; }

  /// Set once either process has ended: no error when both ended well (`moiety down`), else what
  /// happened.
  std::optional<std::optional<Error>> ended();
  /// Ends everything, in order, with bounded waits.
  void stop();
  /// Leaves the processes running when this object goes.
  void release();

 private:
  LocalCluster() = default;
  Result<void> launch(const LocalClusterOptions& options, bool progress);
  Error failure(const std::string& process, int status) const;
  std::filesystem::path log(const std::string& process) const;
  Result<pid_t> start_logged(const std::string& process,
                             const std::vector<std::string>& arguments,
                             const std::vector<std::pair<std::string, std::string>>& environment,
                             Lifetime lifetime);

  pid_t coordinator_ = -1;
  pid_t router_ = -1;
  std::string api_url_;
  std::string admin_url_;
  std::filesystem::path run_dir_;
  std::map<std::string, std::uintmax_t> log_begin_;  // process: bytes of earlier runs in its log
};

/// The checkpoint that comes with Moiety: beside the sources or in share/moiety of the
/// installation.
Result<std::filesystem::path> bundled_model();

}  // namespace moiety::cli
