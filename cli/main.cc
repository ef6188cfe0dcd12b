#include <cstdio>
#include <exception>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "common/log.h"

int main(int argc, char** argv) {
  using namespace moiety;
  init_logging("moiety", LogLevel::kWarning);
  cli::install_interrupt_handler();
  CLI::App app(
      "Moiety serves the part of a mixture-of-experts language model that a deployment needs.");
  app.set_version_flag("--version", std::string("moiety ") + MOIETY_VERSION);
  app.require_subcommand(1);
  cli::Chosen chosen;
  cli::add_cluster_commands(app, chosen);
  cli::add_serve(app, chosen);
  cli::add_generate(app, chosen);
  cli::add_inspect(app, chosen);
  cli::add_profile(app, chosen);
  cli::add_select(app, chosen);
  cli::add_eval(app, chosen);
  cli::add_logits(app, chosen);
  cli::add_bench(app, chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 1;
  }
  const Result<void> outcome = [&]() -> Result<void> {
    try {
      return chosen.run();
    } catch (
        const std::exception& error) {  // of a library: an answer of another shape, out of memory
      return fail(ErrorCode::kInternal, std::string("unexpected: ") + error.what());
    }
  }();
  if (outcome) return 0;
  std::fprintf(stderr, "moiety: %s\n", outcome.error().message.c_str());
  return outcome.error().code == ErrorCode::kCancelled ? 130 : 1;
}
