#pragma once

#include <CLI/CLI.hpp>
#include <boost/json.hpp>
#include <functional>
#include <string>

#include "common/result.h"

namespace moiety::cli {

/// What a parsed command line runs: set by the chosen subcommand's callback, called by main.
struct Chosen {
  std::function<Result<void>()> run;
};

// One function per subcommand: declares its flags on `app` and, when it is chosen, fills `chosen`.
void add_generate(CLI::App& app, Chosen& chosen);
void add_serve(CLI::App& app, Chosen& chosen);
void add_inspect(CLI::App& app, Chosen& chosen);
void add_profile(CLI::App& app, Chosen& chosen);
void add_select(CLI::App& app, Chosen& chosen);
void add_eval(CLI::App& app, Chosen& chosen);
void add_logits(CLI::App& app, Chosen& chosen);
void add_cluster_commands(CLI::App& app,
                          Chosen& chosen);  // up, status, deploy, undeploy, drain, down
void add_bench(CLI::App& app, Chosen& chosen);

/// Prints to stdout, with a newline.
void print_json(const boost::json::value& value);

/// kIo once something that was printed to stdout could not be written, e.g. to a full disk.
Result<void> check_output();

/// "1.5 GiB"
std::string human_bytes(double bytes);

/// True once Ctrl-C was pressed (or SIGTERM or SIGHUP came); long loops look at it and end with
/// kCancelled. Installed by main.
bool interrupted();
Error interrupted_error();

/// A line on stderr that is overwritten in place while it is a terminal, and silent otherwise or
/// when turned off.
class Progress {
 public:
  explicit Progress(bool enabled);
  ~Progress();
  void update(const std::string& text);

 private:
  const bool enabled_;
  bool shown_ = false;
};

}  // namespace moiety::cli
