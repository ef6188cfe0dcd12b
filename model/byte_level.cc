#include "model/byte_level.h"

#include <array>

#include "common/utf8.h"

namespace moiety {
namespace {

constexpr int kAlphabetEnd = 0x144;  // 68 bytes do not stand for themselves

struct Alphabet {
  std::array<std::string, 256> characters;
  std::array<std::int16_t, kAlphabetEnd> bytes;  // by code point; -1: not in the alphabet
};

const Alphabet& alphabet() {
  static const Alphabet instance = [] {
    Alphabet made;
    made.bytes.fill(-1);
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool itself = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
      const char32_t character = itself ? static_cast<char32_t>(byte) : next++;
      append_code_point(character, made.characters[static_cast<std::size_t>(byte)]);
      made.bytes[character] = static_cast<std::int16_t>(byte);
    }
    return made;
  }();
  return instance;
}

}  // namespace

std::string_view byte_level_character(std::uint8_t byte) { return alphabet().characters[byte]; }

void append_byte_level(std::string_view bytes, std::string& text) {
  for (char byte : bytes) text += byte_level_character(static_cast<std::uint8_t>(byte));
}

std::string byte_level_decode(std::string_view text) {
  std::string bytes;
  for (std::string_view rest = text; !rest.empty();) {
    const CodePoint character = first_code_point(rest);
    if (character.value >= kAlphabetEnd || alphabet().bytes[character.value] < 0) {
      return std::string(text);
    }
    bytes += static_cast<char>(alphabet().bytes[character.value]);
    rest.remove_prefix(character.bytes);
  }
  return bytes;
}

}  // namespace moiety
