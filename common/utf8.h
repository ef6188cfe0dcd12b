#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace moiety {

/// One character and the bytes that it takes.
struct CodePoint {
  char32_t value = 0;
  std::size_t bytes = 0;
};

/// The first (last) character of valid, non-empty UTF-8.
CodePoint first_code_point(std::string_view valid);
CodePoint last_code_point(std::string_view valid);

/// Appends a Unicode scalar value.
void append_code_point(char32_t value, std::string& out);

bool is_valid_utf8(std::string_view bytes);

/// Appends `bytes`, each maximal subpart of an ill-formed sequence replaced by one U+FFFD (Unicode
/// 15, section 3.9, "U+FFFD Substitution of Maximal Subparts"; Python's errors="replace").
void append_replacing_invalid(std::string_view bytes, std::string& out);

/// Text as a terminal or a log may have it, whatever file or client it came from: ill-formed bytes
/// become U+FFFD, control characters but newline and tab \xNN.
std::string printable(std::string_view text);

/// Length of the suffix that starts a character which more bytes could complete: 0 to 3.
std::size_t unfinished_utf8_suffix(std::string_view bytes);

}  // namespace moiety
