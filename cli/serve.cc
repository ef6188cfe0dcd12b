#include <cstdio>
#include <iostream>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/named_files.h"
#include "common/address.h"
#include "common/log.h"
#include "router/options.h"

namespace moiety::cli {

void add_serve(CLI::App& app, Chosen& chosen) {
  CLI::App* command = app.add_subcommand(
      "serve", "Serve a model over HTTP from this one process: no worker, no coordinator");
  struct Flags {
    RouterOptions options;
    std::vector<std::string> deployments;
    bool json = false;
  };
  auto flags = std::make_shared<Flags>();
  add_router_flags(*command, flags->options);
  command->add_option("--deploy", flags->deployments,
                      "NAME=subset.json, served as MODEL:NAME; repeat for more");
  command->add_flag("!--no-full", flags->options.full,
                    "Do not serve the full model, nor load what only it needs");
  command
      ->add_option("--expert-dtype", flags->options.expert_dtype,
                   "Routed experts as bf16, f32 or int8 (a scale per output channel); as --dtype "
                   "unless given")
      ->check(CLI::IsMember({"bf16", "f32", "int8"}));
  command->add_flag("--json", flags->json, "Print the address as JSON once it listens");
  command->callback([flags, &chosen] {
    chosen.run = [flags]() -> Result<void> {
      MOIETY_ASSIGN(const std::vector<NamedFile> files,
                    parse_named_files("--deploy", flags->deployments));
      for (const NamedFile& file : files)
        flags->options.deployments.emplace_back(file.name, file.file);
      remove_interrupt_handler();  // the router watches signals itself
      init_logging("serve");
      return run_router(flags->options, [flags](std::uint16_t port) {
        const std::string url = "http://" + format_address(flags->options.host, port);
        if (flags->json) {
          print_json(boost::json::object{{"url", url}});
        } else {
          std::cout << "listening at " << url << std::endl;
        }
      });
    };
  });
}

}  // namespace moiety::cli
