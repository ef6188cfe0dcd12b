#pragma once

#include <string>
#include <string_view>

#include "common/result.h"

namespace moiety {

/// Rewrites a regular expression of tokenizer.json (Oniguruma, Ruby syntax, UTF-8) so that PCRE2
/// with PCRE2_UTF and PCRE2_UCP finds the same matches. What the two read differently and what
/// cannot be written in the other's terms (\X, \K in groups, back references to open groups, inline
/// flags but (?i), sets of letters in classes under (?i), ...) is refused: kInvalidArgument with
/// the construct and its byte position. Errors of plain syntax are left to PCRE2's compiler.
Result<std::string> translate_pattern(std::string_view pattern);

}  // namespace moiety
