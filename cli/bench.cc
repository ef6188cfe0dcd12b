#include "cli/bench.h"

namespace moiety::cli {

void add_bench(CLI::App& app, Chosen& chosen) {
  CLI::App* bench = app.add_subcommand("bench", "Measure on this machine");
  bench->require_subcommand(1);
  add_bench_make_checkpoint(*bench, chosen);
  add_bench_engine(*bench, chosen);
  add_bench_kernels(*bench, chosen);
  add_bench_serve(*bench, chosen);
  add_bench_cluster(*bench, chosen);
  add_bench_fabric(*bench, chosen);
}

}  // namespace moiety::cli
