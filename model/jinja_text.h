#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

/// Python's view of strings: characters, not bytes; its white space, cases and spellings. Any bytes
/// are accepted; one that is not part of valid UTF-8 counts as a character.
namespace moiety::jinja {

/// Bytes of the first character; 0 for empty text.
std::size_t character_bytes(std::string_view text);
/// Value of the first character of non-empty text.
char32_t first_character(std::string_view text);
std::size_t count_characters(std::string_view text);
/// Byte position of the character with this index; the text's size beyond its end.
std::size_t character_offset(std::string_view text, std::size_t index);
std::vector<std::string_view> characters(std::string_view text);

/// str.isspace() of one character, which is also `\s` in Python's patterns.
bool is_space(char32_t c);
std::size_t leading_space_bytes(std::string_view text);
std::string_view strip_right(std::string_view text);
/// str.strip and its one-sided forms.
std::string_view strip(std::string_view text, bool left, bool right);
std::string_view strip(std::string_view text, std::string_view chars, bool left, bool right);

std::string upper(std::string_view text);
std::string lower(std::string_view text);
std::string capitalize(std::string_view text);
std::string title(std::string_view text);
std::string swap_case(std::string_view text);

bool is_alphabetic(char32_t c);
bool is_decimal(char32_t c);
bool is_digit(char32_t c);
bool is_lower(char32_t c);
bool is_upper(char32_t c);
bool is_title(char32_t c);
bool is_alphanumeric(char32_t c);
bool is_identifier_start(char32_t c);
bool is_identifier_part(char32_t c);
bool is_printable(char32_t c);

/// HTML-escapes & < > ' ".
std::string escape_html(std::string_view text);

/// repr() of a string.
std::string quoted(std::string_view text);

/// repr() of a float: the shortest digits that read back the same.
std::string float_text(double value);

std::string integer_text(__int128 value);

}  // namespace moiety::jinja
