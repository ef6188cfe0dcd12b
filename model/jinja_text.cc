#include "model/jinja_text.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>

namespace moiety::jinja {
namespace {

// Length of the well-formed character at the start of `text`; 0 if there is none (Unicode 15, table
// 3-7).
std::size_t well_formed_bytes(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const std::uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  if (text.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0u) != 0x80) return 0;
  }
  if ((lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xED && byte(1) > 0x9F)) return 0;
  if ((lead == 0xF0 && byte(1) < 0x90) || (lead == 0xF4 && byte(1) > 0x8F)) return 0;
  return length;
}

// Where the last character of non-empty text starts.
std::size_t last_character_offset(std::string_view text) {
  for (std::size_t bytes = 1; bytes <= std::min<std::size_t>(4, text.size()); ++bytes) {
    const std::size_t start = text.size() - bytes;
    if (well_formed_bytes(text.substr(start)) == bytes) return start;
  }
  return text.size() - 1;
}

}  // namespace

std::size_t character_bytes(std::string_view text) {
  if (text.empty()) return 0;
  return std::max<std::size_t>(1, well_formed_bytes(text));
}

char32_t first_character(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const auto tail = [&](std::size_t i) { return static_cast<char32_t>(byte(i) & 0x3Fu); };
  switch (well_formed_bytes(text)) {
    case 1:
      return byte(0);
    case 2:
      return (byte(0) & 0x1Fu) << 6 | tail(1);
    case 3:
      return (byte(0) & 0x0Fu) << 12 | tail(1) << 6 | tail(2);
    case 4:
      return (byte(0) & 0x07u) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3);
    default:
      return 0xFFFD;
  }
}

std::size_t count_characters(std::string_view text) {
  std::size_t count = 0;
  while (!text.empty()) {
    text.remove_prefix(character_bytes(text));
    ++count;
  }
  return count;
}

std::size_t character_offset(std::string_view text, std::size_t index) {
  std::size_t position = 0;
  for (; index > 0 && position < text.size(); --index)
    position += character_bytes(text.substr(position));
  return position;
}

std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> out;
  while (!text.empty()) {
    out.push_back(text.substr(0, character_bytes(text)));
    text.remove_prefix(out.back().size());
  }
  return out;
}

bool is_space(char32_t c) {
  if (c < 0x80) return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

std::size_t leading_space_bytes(std::string_view text) {
  std::size_t position = 0;
  while (position < text.size() && is_space(first_character(text.substr(position)))) {
    position += character_bytes(text.substr(position));
  }
  return position;
}

std::string_view strip_right(std::string_view text) {
  while (!text.empty()) {
    const std::size_t last = last_character_offset(text);
    if (!is_space(first_character(text.substr(last)))) break;
    text = text.substr(0, last);
  }
  return text;
}

std::string_view strip(std::string_view text, bool left, bool right) {
  if (left) text.remove_prefix(leading_space_bytes(text));
  return right ? strip_right(text) : text;
}

std::string_view strip(std::string_view text, std::string_view chars, bool left, bool right) {
  const std::vector<std::string_view> set = characters(chars);
  const auto in_set = [&](std::string_view c) {
    return std::find(set.begin(), set.end(), c) != set.end();
  };
  while (left && !text.empty() && in_set(text.substr(0, character_bytes(text)))) {
    text.remove_prefix(character_bytes(text));
  }
  while (right && !text.empty()) {
    const std::size_t last = last_character_offset(text);
    if (!in_set(text.substr(last))) break;
    text = text.substr(0, last);
  }
  return text;
}

std::string escape_html(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string quoted(std::string_view text) {
  const bool has_single = text.find('\'') != text.npos;
  const char quote = has_single && text.find('"') == text.npos ? '"' : '\'';
  const auto hex = [](std::string& out, char32_t c, int digits) {
    for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4)
      out += "0123456789abcdef"[(c >> shift) & 15u];
  };
  std::string out(1, quote);
  while (!text.empty()) {
    const std::string_view bytes = text.substr(0, character_bytes(text));
    const char32_t c = first_character(text);
    text.remove_prefix(bytes.size());
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out += '\\';
      out += bytes;
    } else if (c == '\n' || c == '\r' || c == '\t') {
      out += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (is_printable(c)) {
      out += bytes;
    } else if (c < 0x100) {
      out += "\\x";
      hex(out, c, 2);
    } else if (c < 0x10000) {
      out += "\\u";
      hex(out, c, 4);
    } else {
      out += "\\U";
      hex(out, c, 8);
    }
  }
  return out += quote;
}

std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  std::array<char, 32> buffer;
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                 std::chars_format::scientific);
  const std::string_view shortest(buffer.data(), static_cast<std::size_t>(end.ptr - buffer.data()));
  const std::size_t e = shortest.find('e');
  int exponent = 0;
  const char* digits_of_exponent = shortest.data() + e + (shortest[e + 1] == '+' ? 2 : 1);
  std::from_chars(digits_of_exponent, shortest.data() + shortest.size(), exponent);
  // Python writes exponents below -4 and from 16 on, digits in between.
  if (exponent < -4 || exponent >= 16) return std::string(shortest);
  std::string digits;
  for (char c : shortest.substr(0, e)) {
    if (c >= '0' && c <= '9') digits += c;
  }
  std::string out = std::signbit(value) ? "-" : "";
  if (exponent < 0) {
    out += "0.";
    out.append(static_cast<std::size_t>(-exponent - 1), '0');
    return out += digits;
  }
  const auto before_point = static_cast<std::size_t>(exponent) + 1;
  if (digits.size() < before_point) digits.append(before_point - digits.size(), '0');
  out += digits.substr(0, before_point);
  out += '.';
  return out += digits.size() > before_point ? digits.substr(before_point) : "0";
}

std::string integer_text(__int128 value) {
  std::string out;
  auto rest = static_cast<unsigned __int128>(value);
  if (value < 0) rest = -rest;
  do {
    out += static_cast<char>('0' + static_cast<int>(rest % 10));
    rest /= 10;
  } while (rest != 0);
  if (value < 0) out += '-';
  std::reverse(out.begin(), out.end());
  return out;
}

}  // namespace moiety::jinja
