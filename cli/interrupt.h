#pragma once

namespace moiety::cli {

/// SIGINT, SIGTERM and SIGHUP (a closed terminal, unless it is ignored as under nohup) set
/// interrupted(). Commands that run a server take the handler off and watch
/// signals themselves.
void install_interrupt_handler();
void remove_interrupt_handler();

}  // namespace moiety::cli
