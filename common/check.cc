#include "common/check.h"

#include <cstdio>
#include <cstdlib>

namespace moiety {

void check_failed(std::string_view what, const char* file, int line) {
  std::fprintf(stderr, "moiety: bug at %s:%d: %.*s\n", file, line, static_cast<int>(what.size()),
               what.data());
  std::abort();
}

}  // namespace moiety
