#pragma once

#include <filesystem>
#include <string>

#include "cli/offline.h"

namespace moiety::cli {

/// The model of a `bench` command: a checkpoint folder, or a shape with random weights that is
/// written once and used again.
struct BenchModel {
  ModelFlags model;  ///< `model.model` is empty until prepare() where a shape was chosen
  std::string shape = "olmoe-1.8b";
  std::filesystem::path checkpoint_dir;
  std::int32_t layers = 0;
  std::uint64_t seed = 1;
  void add_to(CLI::App& command);

  /// Makes the shape's checkpoint unless it is there already (about as long as the disk takes).
  /// kFailedPrecondition: the folder holds something else.
  Result<void> prepare();
  /// "olmoe-1.8b" or the folder's name.
  std::string name() const;
};

/// Reads the files of a checkpoint once, on all threads, into memory like that of weights, and lets
/// it go: seconds until all of it is there. The bytes are returned through `bytes`.
Result<double> read_seconds(const Checkpoint& checkpoint, ThreadPool& pool, std::uint64_t& bytes);

}  // namespace moiety::cli
