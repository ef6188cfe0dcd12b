#pragma once

#include <string_view>

namespace moiety {

/// Whether two secrets are equal; the time depends only on the length of `presented`.
bool secrets_equal(std::string_view presented, std::string_view expected);

}  // namespace moiety
