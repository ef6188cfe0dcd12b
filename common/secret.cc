#include "common/secret.h"

namespace moiety {

bool secrets_equal(std::string_view presented, std::string_view expected) {
  volatile unsigned char difference = presented.size() != expected.size() ? 1 : 0;
  for (std::size_t i = 0; i < presented.size(); ++i) {
    const char other = expected.empty() ? '\0' : expected[i % expected.size()];
    difference = static_cast<unsigned char>(difference | (presented[i] ^ other));
  }
  return difference == 0;
}

}  // namespace moiety
