#include "common/descriptors.h"

#include <sys/eventfd.h>
#include <sys/resource.h>

#include <cerrno>
#include <vector>

#include "common/file.h"

namespace moiety {

std::size_t descriptor_limit() {
  rlimit limit = {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  return static_cast<std::size_t>(limit.rlim_cur);
}

void raise_descriptor_limit() {
  rlimit limit = {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

bool descriptors_left(std::size_t count) {
  std::vector<Fd> opened;
  for (std::size_t i = 0; i < count; ++i) {
    opened.emplace_back(::eventfd(0, EFD_CLOEXEC));
    if (!opened.back()) return errno != EMFILE && errno != ENFILE;
  }
  return true;
}

}  // namespace moiety
