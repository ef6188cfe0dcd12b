#pragma once

#include "cli/command.h"

namespace moiety::cli {

void add_up(CLI::App& app, Chosen& chosen);

}  // namespace moiety::cli
