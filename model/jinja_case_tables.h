#pragma once

#include <string_view>

namespace moiety::jinja {

/// A character whose upper or title case is more than one character.
struct SpecialCase {
  char32_t c;
  std::u32string_view upper;
  std::u32string_view title;
};

/// nullptr: its cases are single characters.
const SpecialCase* find_special_case(char32_t c);

}  // namespace moiety::jinja
