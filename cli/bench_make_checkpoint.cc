#include <algorithm>
#include <cstdio>

#include "bench/make_checkpoint.h"
#include "bench/shapes.h"
#include "cli/bench.h"
#include "cli/local_cluster.h"
#include "common/ids.h"

namespace moiety::cli {
namespace {

struct MakeFlags {
  std::string shape;
  std::filesystem::path output;
  std::string dtype = "bf16";
  std::uint64_t seed = 1;
  std::int32_t layers = 0;
  std::size_t threads = 0;
  bool list = false;
  bool json = false;
};

DType dtype_of(const std::string& name) {
  if (name == "f32") return DType::kF32;
  return name == "f16" ? DType::kF16 : DType::kBF16;
}

void list_shapes(bool as_json) {
  boost::json::array list;
  for (const bench::Shape& shape : bench::all_shapes()) {
    if (as_json) {
      list.push_back(boost::json::object{{"name", std::string(shape.name)},
                                         {"description", std::string(shape.description)}});
    } else {
      std::printf("%-18s %s\n", std::string(shape.name).c_str(),
                  std::string(shape.description).c_str());
    }
  }
  if (as_json) print_json(boost::json::object{{"shapes", list}});
}

Result<void> run_make_checkpoint(const MakeFlags& flags) {
  if (flags.list) {
    list_shapes(flags.json);
    return {};
  }
  if (flags.shape.empty() || flags.output.empty()) {
    return fail(ErrorCode::kInvalidArgument,
                "bench make-checkpoint needs --shape NAME and --output DIR (--list shows the "
                "shapes)");
  }
  const auto shape = bench::find_shape(flags.shape);
  if (!shape) return with_context("--shape", shape.error());
  const DType dtype = dtype_of(flags.dtype);
  bench::MakeCheckpoint options;
  options.folder = flags.output;
  options.config_json = bench::shape_config(*shape, bench::torch_name(dtype), flags.layers);
  MOIETY_ASSIGN(const std::filesystem::path base, bundled_model());
  options.base_tokenizer = base / "tokenizer.json";
  options.dtype = dtype;
  options.seed = flags.seed;
  Progress progress(!flags.json);
  options.progress = [&](std::uint64_t done, std::uint64_t total) {
    progress.update("wrote " + human_bytes(static_cast<double>(done)) + " of " +
                    human_bytes(static_cast<double>(total)));
    return !interrupted();
  };
  ThreadPool pool(flags.threads);
  const Clock::time_point began = Clock::now();
  MOIETY_ASSIGN(const std::uint64_t bytes, bench::make_checkpoint(options, pool));
  const double seconds = std::chrono::duration<double>(Clock::now() - began).count();
  if (flags.json) {
    print_json(boost::json::object{{"folder", flags.output.string()},
                                   {"shape", flags.shape},
                                   {"dtype", flags.dtype},
                                   {"seed", flags.seed},
                                   {"bytes", bytes},
                                   {"seconds", seconds}});
  } else {
    std::printf("%s: %s of %s weights in %.1f s\n", flags.output.c_str(),
                human_bytes(static_cast<double>(bytes)).c_str(), flags.dtype.c_str(), seconds);
  }
  return {};
}

}  // namespace

void add_bench_make_checkpoint(CLI::App& bench, Chosen& chosen) {
  CLI::App* command = bench.add_subcommand(
      "make-checkpoint",
      "Write a checkpoint with random weights and a working tokenizer, to try any command at a "
      "realistic size");
  auto flags = std::make_shared<MakeFlags>();
  command->add_option("--shape", flags->shape, "Architecture and sizes, by name");
  command->add_option("-o,--output", flags->output, "Folder to make; must be new or empty");
  command->add_option("--dtype", flags->dtype, "Element type of the weights")
      ->check(CLI::IsMember({"bf16", "f32", "f16"}))
      ->capture_default_str();
  command->add_option("--seed", flags->seed, "The same seed gives the same bytes")
      ->capture_default_str();
  command->add_option("--layers", flags->layers, "Another number of layers than the shape's")
      ->check(CLI::Range(1, 1024));
  command->add_option("--threads", flags->threads, "Threads; 0 = one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->add_flag("--list", flags->list, "List the shapes");
  command->add_flag("--json", flags->json, "Print JSON");
  command->callback(
      [flags, &chosen] { chosen.run = [flags] { return run_make_checkpoint(*flags); }; });
}

}  // namespace moiety::cli
