// A worker process for tests: `ucx_echo_worker ID INCARNATION TOKEN` prints its address and sends
// every payload back until it is killed or its parent dies.
#include <signal.h>
#include <sys/prctl.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "fabric/ucx/ucx_lane.h"

int main(int argc, char** argv) {
  using namespace moiety;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (argc != 4) return 2;
  const fabric::LaneIdentity identity{std::stoull(argv[1]), std::stoull(argv[2]), argv[3]};
  auto port = fabric::open_ucx_port(identity, "127.0.0.1");
  if (!port) {
    std::fprintf(stderr, "%s\n", port.error().message.c_str());
    return 1;
  }
  std::printf("%s\n", (*port)->address().c_str());
  std::fflush(stdout);
  for (;;) {
    fabric::Event event = (*port)->wait(Clock::now() + std::chrono::hours(1));
    if (event.type != fabric::Event::Type::kMessage) continue;
    fabric::Header header = event.header;
    header.kind = fabric::Kind::kReply;
    header.sender = identity.id;
    if (const auto sent = (*port)->send(event.peer, header, std::move(event.payload)); !sent)
      continue;
  }
}
