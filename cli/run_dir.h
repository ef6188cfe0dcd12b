#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/left_behind.h"
#include "common/file.h"
#include "common/result.h"

namespace moiety::cli {

/// The folder of a cluster's addresses, secret and logs, made for this user only if it is missing.
///
///   given       --run-dir; empty: one below the temporary folder
///   admin_port  names the folder below the temporary folder; 0: this process's id does
///
/// Others may write to the temporary folder, so what lies there already is only used if it is a
/// folder of ours that nobody else can write to (kFailedPrecondition).
Result<std::filesystem::path> make_run_dir(const std::filesystem::path& given,
                                           std::uint16_t admin_port);

/// What a coordinator writes into its run dir (coordinator.json).
struct RunFile {
  pid_t pid = 0;
  std::string model;
  std::string control_address;
  std::string admin_address;
  std::string token;
};

/// nullopt while there is none, or no valid one.
std::optional<RunFile> read_run_file(const std::filesystem::path& run_dir);

/// Makes the folder this process's own until the descriptor is closed or the process ends, however
/// that happens (up.lock is locked). Waits for another `up` that is starting or ending there.
/// kFailedPrecondition: a cluster runs there; its logs, state and coordinator.json are not ours.
/// kCancelled: Ctrl-C.
Result<Fd> take_run_dir(const std::filesystem::path& run_dir);

/// Whether a cluster left its state in this folder.
bool has_state(const std::filesystem::path& run_dir);

/// Whether a cluster was killed in this folder, or a start that went on with one did not get to
/// serve.
bool ended_in_disorder(const std::filesystem::path& run_dir);

/// From the one to the other a start counts as such. kIo.
Result<void> mark_unfinished(const std::filesystem::path& run_dir);
Result<void> clear_unfinished(const std::filesystem::path& run_dir);

/// Ends what a former cluster in this folder left running and removes its state, so that the next
/// one begins with what its flags say instead of going on with it. Gives what it ended. Only for
/// who took the folder. kFailedPrecondition: a coordinator uses the state, and nothing was touched.
Result<std::vector<OwnProcess>> forget_cluster(const std::filesystem::path& run_dir);

/// A new folder, for this user only; removed with its content.
class ScratchDir {
 public:
  /// Its name begins with `prefix`; below the temporary folder unless that is an absolute path.
  static Result<ScratchDir> make(const std::string& prefix);
  ScratchDir(ScratchDir&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  ScratchDir& operator=(ScratchDir&&) = delete;
  ~ScratchDir();
  const std::filesystem::path& path() const { return path_; }
  /// Removes its files.
  void clear();

 private:
  explicit ScratchDir(std::filesystem::path path) : path_(std::move(path)) {}
  std::filesystem::path path_;
};

}  // namespace moiety::cli
