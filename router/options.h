#pragma once

#include "router/router.h"

namespace CLI {
class App;
}

namespace moiety {

/// Adds the flags that `moiety-router` and `moiety serve` share; they write into `options`, which
/// outlives parsing.
void add_router_flags(CLI::App& app, RouterOptions& options);

}  // namespace moiety
