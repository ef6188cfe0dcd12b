#include <cstdio>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "common/descriptors.h"
#include "common/guard.h"
#include "common/log.h"

namespace {

/// The exit status. Output that could not be written is an error like any other.
int end(moiety::Result<void> outcome) {
  if (outcome) outcome = moiety::cli::check_output();
  if (outcome) return 0;
  moiety::print_error("moiety", outcome.error().message);
  return outcome.error().code == moiety::ErrorCode::kCancelled ? 130 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace moiety;
  raise_descriptor_limit();
  init_logging("moiety", LogLevel::kWarning);
  cli::install_interrupt_handler();
  CLI::App app(
      "Moiety serves the part of a mixture-of-experts language model that a deployment needs.");
  app.set_version_flag("--version", std::string("moiety ") + MOIETY_VERSION);
  app.require_subcommand(0, 1);  // none is refused below: here it would hide a misspelt one
  app.failure_message([](const CLI::App*, const CLI::Error& error) {
    return std::string("moiety: ") + error.what() + " (`moiety COMMAND --help` lists the flags)\n";
  });
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
    return app.exit(error) == 0 ? end({}) : 1;
  }
  if (!chosen.run) {
    std::fprintf(stderr, "moiety: no command given (`moiety --help` lists them)\n");
    return 1;
  }
  return end(guarded(chosen.run));
}
