#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace moiety {

/// The printable character that stands for a byte in byte-level vocabularies (GPT-2's table: '!' to
/// '~', U+00A1 to U+00AC and U+00AE to U+00FF stand for themselves, the others for U+0100 onwards
/// in order).
std::string_view byte_level_character(std::uint8_t byte);

/// Appends `bytes` in that alphabet, as vocabularies spell tokens.
void append_byte_level(std::string_view bytes, std::string& text);

/// The bytes that a token's text (valid UTF-8) stands for. A text with any character outside the
/// alphabet, as added tokens may have, stands for its own UTF-8.
std::string byte_level_decode(std::string_view text);

}  // namespace moiety
