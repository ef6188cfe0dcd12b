#pragma once

#include "cli/command.h"

namespace moiety::cli {

// One function per `moiety bench` subcommand, as in command.h.
void add_bench_make_checkpoint(CLI::App& bench, Chosen& chosen);
void add_bench_engine(CLI::App& bench, Chosen& chosen);
void add_bench_kernels(CLI::App& bench, Chosen& chosen);
void add_bench_serve(CLI::App& bench, Chosen& chosen);
void add_bench_cluster(CLI::App& bench, Chosen& chosen);
void add_bench_fabric(CLI::App& bench, Chosen& chosen);

}  // namespace moiety::cli
