#include "common/utf8.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace moiety {
namespace {

enum class Form { kValid, kInvalid, kUnfinished };

// `bytes` is the length of the character, or of the maximal subpart of what is not one.
struct Scanned {
  Form form;
  std::size_t bytes;
};

// Unicode 15, table 3-7, "Well-Formed UTF-8 Byte Sequences". Requires non-empty text.
Scanned scan(std::string_view text) {
  const auto lead = static_cast<std::uint8_t>(text[0]);
  if (lead < 0x80) return {Form::kValid, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Form::kInvalid, 1};
  const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  std::uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  std::uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (std::size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Form::kUnfinished, i};
    const auto byte = static_cast<std::uint8_t>(text[i]);
    if (byte < low || byte > high) return {Form::kInvalid, i};
    low = 0x80;
    high = 0xBF;
  }
  return {Form::kValid, length};
}

// Bytes at the start of `text` that are valid UTF-8, up to the first that are not.
std::size_t valid_prefix(std::string_view text) {
  std::size_t position = 0;
  while (position < text.size()) {
    std::uint64_t word = 0;
    if (text.size() - position >= sizeof word) {
      std::memcpy(&word, text.data() + position, sizeof word);
      if ((word & 0x8080808080808080u) == 0) {
        position += sizeof word;
        continue;
      }
    }
    const Scanned character = scan(text.substr(position));
    if (character.form != Form::kValid) break;
    position += character.bytes;
  }
  return position;
}

}  // namespace

CodePoint first_code_point(std::string_view valid) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(valid[i]); };
  const auto tail = [&](std::size_t i) { return static_cast<char32_t>(byte(i) & 0x3Fu); };
  const std::uint8_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1Fu) << 6 | tail(1), 2};
  if (lead < 0xF0) return {(lead & 0x0Fu) << 12 | tail(1) << 6 | tail(2), 3};
  return {(lead & 0x07u) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3), 4};
}

CodePoint last_code_point(std::string_view valid) {
  std::size_t start = valid.size() - 1;
  while ((static_cast<std::uint8_t>(valid[start]) & 0xC0u) == 0x80) --start;
  return first_code_point(valid.substr(start));
}

void append_code_point(char32_t value, std::string& out) {
  const auto tail = [&](unsigned shift) {
    return static_cast<char>(0x80u | ((value >> shift) & 0x3Fu));
  };
  if (value < 0x80) {
    out += static_cast<char>(value);
  } else if (value < 0x800) {
    out += static_cast<char>(0xC0u | value >> 6);
    out += tail(0);
  } else if (value < 0x10000) {
    out += static_cast<char>(0xE0u | value >> 12);
    out += tail(6);
    out += tail(0);
  } else {
    out += static_cast<char>(0xF0u | value >> 18);
    out += tail(12);
    out += tail(6);
    out += tail(0);
  }
}

bool is_valid_utf8(std::string_view bytes) { return valid_prefix(bytes) == bytes.size(); }

void append_replacing_invalid(std::string_view bytes, std::string& out) {
  for (;;) {
    const std::size_t valid = valid_prefix(bytes);
    out.append(bytes.substr(0, valid));
    bytes.remove_prefix(valid);
    if (bytes.empty()) return;
    out += "\xEF\xBF\xBD";
    bytes.remove_prefix(scan(bytes).bytes);
  }
}

std::string printable(std::string_view text) {
  std::string valid, out;
  append_replacing_invalid(text, valid);
  for (std::string_view rest = valid; !rest.empty();) {
    const auto [value, bytes] = first_code_point(rest);
    const bool is_control =
        (value < 0x20 && value != '\n' && value != '\t') || (value >= 0x7f && value < 0xa0);
    if (is_control) {
      constexpr std::string_view kHex = "0123456789abcdef";
      out += {'\\', 'x', kHex[value >> 4], kHex[value & 15]};
    } else {
      out += rest.substr(0, bytes);
    }
    rest.remove_prefix(bytes);
  }
  return out;
}

std::size_t unfinished_utf8_suffix(std::string_view bytes) {
  // A lead byte always starts a new character, so the last one decides.
  for (std::size_t length = 1; length <= std::min<std::size_t>(3, bytes.size()); ++length) {
    const auto byte = static_cast<std::uint8_t>(bytes[bytes.size() - length]);
    if ((byte & 0xC0u) == 0x80) continue;
    const Scanned character = scan(bytes.substr(bytes.size() - length));
    return character.form == Form::kUnfinished ? length : 0;
  }
  return 0;
}

}  // namespace moiety
