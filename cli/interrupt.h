#pragma once

namespace moiety::cli {

/// SIGINT and SIGTERM set interrupted(). Commands that run a server take the handler off and watch
/// signals themselves.
void install_interrupt_handler();
void remove_interrupt_handler();

}  // namespace moiety::cli
