#include "cli/bench_model.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>

#include "bench/make_checkpoint.h"
#include "bench/shapes.h"
#include "cli/local_cluster.h"
#include "common/file.h"
#include "kernels/weight_memory.h"

namespace moiety::cli {

void BenchModel::add_to(CLI::App& command) {
  model.add_to(command);
  CLI::Option* folder = command.get_option("--model")->required(false);
  folder->description("Checkpoint folder, instead of a shape");
  command
      .add_option("--shape", shape,
                  "Random weights of this shape (`moiety bench make-checkpoint --list`)")
      ->excludes(folder)
      ->capture_default_str();
  command
      .add_option("--checkpoint-dir", checkpoint_dir,
                  "Where the shape's checkpoint is kept and used again; below the temporary folder "
                  "unless given")
      ->excludes(folder);
  command.add_option("--layers", layers, "Another number of layers than the shape's")
      ->check(CLI::Range(1, 1024))
      ->excludes(folder);
  command.add_option("--seed", seed, "Of random weights and prompts")->capture_default_str();
}

std::string BenchModel::name() const {
  if (shape.empty()) {
    const std::filesystem::path folder = model.model.lexically_normal();
    return (folder.has_filename() ? folder : folder.parent_path()).filename().string();
  }
  return layers > 0 ? shape + " of " + std::to_string(layers) + " layers" : shape;
}

Result<void> BenchModel::prepare() {
  if (!model.model.empty()) {
    shape.clear();
    return {};
  }
  const auto found = bench::find_shape(shape);
  if (!found) return with_context("--shape", found.error());
  const std::string config = bench::shape_config(*found, bench::torch_name(DType::kBF16), layers);
  std::error_code ec;
  if (checkpoint_dir.empty()) {
    std::string folder = "moiety-bench-" + shape;
    if (layers > 0) folder += "-" + std::to_string(layers) + "layers";
    folder += "-" + std::to_string(seed);
    checkpoint_dir = std::filesystem::temp_directory_path(ec) / folder;
  }
  model.model = checkpoint_dir;
  if (std::filesystem::exists(checkpoint_dir / "config.json", ec)) {
    MOIETY_ASSIGN(const std::string there, read_file(checkpoint_dir / "config.json"));
    if (there == config) return {};  // it appeared there when it was complete
    return fail(ErrorCode::kFailedPrecondition,
                checkpoint_dir.string() + ": its config.json is not that of shape " + name() +
                    "; remove the folder or name another one with --checkpoint-dir");
  }
  bench::MakeCheckpoint options;
  options.folder = checkpoint_dir;
  options.config_json = config;
  MOIETY_ASSIGN(const std::filesystem::path base, bundled_model());
  options.base_tokenizer = base / "tokenizer.json";
  options.seed = seed;
  Progress progress(!model.json);
  options.progress = [&](std::uint64_t done, std::uint64_t total) {
    progress.update("writing " + checkpoint_dir.string() + ": " +
                    human_bytes(static_cast<double>(done)) + " of " +
                    human_bytes(static_cast<double>(total)));
    return !interrupted();
  };
  ThreadPool pool(model.threads);
  MOIETY_TRY(bench::make_checkpoint(options, pool));
  return {};
}

Result<double> read_seconds(const Checkpoint& checkpoint, ThreadPool& pool, std::uint64_t& bytes) {
  constexpr std::uint64_t kPiece = std::uint64_t{4} << 20;
  struct Piece {
    int fd;
    std::uint64_t begin;
    std::size_t size;
    std::unique_ptr<std::byte, decltype(&kernels::free_weights)> memory{nullptr,
                                                                        &kernels::free_weights};
  };
  std::vector<Fd> files;
  std::vector<Piece> pieces;
  bytes = 0;
  for (const std::filesystem::path& path : checkpoint.tensors().files()) {
    files.emplace_back(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat info {};
    if (!files.back() || ::fstat(files.back().get(), &info) != 0)
      return fail(ErrorCode::kIo, path.string() + ": cannot read: " + std::strerror(errno));
    const auto size = static_cast<std::uint64_t>(info.st_size);
    for (std::uint64_t begin = 0; begin < size; begin += kPiece)
      pieces.push_back({files.back().get(), begin, std::min(kPiece, size - begin)});
    bytes += size;
  }
  std::atomic<bool> failed{false};
  const Clock::time_point began = Clock::now();
  pool.parallel_for(pieces.size(), [&](std::size_t i, std::size_t) {
    Piece& piece = pieces[i];
    piece.memory.reset(kernels::allocate_weights(piece.size));
    const auto begin = static_cast<off_t>(piece.begin);
    if (::pread(piece.fd, piece.memory.get(), piece.size, begin) !=
        static_cast<ssize_t>(piece.size)) {
      failed = true;
    }
  });
  if (failed) return fail(ErrorCode::kIo, checkpoint.folder().string() + ": cannot read its files");
  return std::chrono::duration<double>(Clock::now() - began).count();
}

}  // namespace moiety::cli
