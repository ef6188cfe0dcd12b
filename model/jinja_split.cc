// Cutting strings up, filling them, replacing in them.

#include <algorithm>

#include "model/jinja_operators.h"
#include "model/jinja_text.h"

namespace moiety::jinja {
namespace {

bool is_line_end(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

// What a part costs once it is a value.
void spend_part(Run& run) {
  run.step();
  run.spend(sizeof(Value) + kTextBytes);
}

Parts split_at_space_from_left(Run& run, std::string_view text, std::size_t most) {
  Parts parts;
  text = strip(text, true, false);
  while (!text.empty()) {
    if (parts.size() == most) {
      parts.push_back(text);  // trailing white space stays, as in Python
      return parts;
    }
    std::size_t end = 0;
    while (end < text.size() && !is_space(first_character(text.substr(end))))
      end += character_bytes(text.substr(end));
    spend_part(run);
    parts.push_back(text.substr(0, end));
    text = strip(text.substr(end), true, false);
  }
  return parts;
}

Parts split_at_space_from_right(Run& run, std::string_view text, std::size_t most) {
  Parts words = split_at_space_from_left(run, text, ~std::size_t{0});
  if (words.size() <= most) return words;
  // The words that stay together, with what is between them and before them.
  const std::string_view last = words[words.size() - most - 1];
  const auto end = static_cast<std::size_t>(last.data() + last.size() - text.data());
  Parts parts = {text.substr(0, end)};
  parts.insert(parts.end(), words.end() - static_cast<std::ptrdiff_t>(most), words.end());
  return parts;
}

}  // namespace

Parts split_at_space(Run& run, std::string_view text, std::size_t most, bool right) {
  return right ? split_at_space_from_right(run, text, most)
               : split_at_space_from_left(run, text, most);
}

Parts split_at(
    Run& run, std::string_view text, std::string_view separator, std::size_t most, bool right) {
  Parts parts;
  while (parts.size() < most) {
    const std::size_t at = right ? text.rfind(separator) : text.find(separator);
    if (at == text.npos) break;
    spend_part(run);
    parts.push_back(right ? text.substr(at + separator.size()) : text.substr(0, at));
    text = right ? text.substr(0, at) : text.substr(at + separator.size());
  }
  parts.push_back(text);
  if (right) std::reverse(parts.begin(), parts.end());
  return parts;
}

Parts split_lines(Run& run, std::string_view text, bool keep_ends) {
  Parts lines;
  std::size_t start = 0;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t bytes = character_bytes(text.substr(i));
    if (!is_line_end(first_character(text.substr(i)))) {
      i += bytes;
      continue;
    }
    const std::size_t end = i + (text.substr(i, 2) == "\r\n" ? 2 : bytes);
    spend_part(run);
    lines.push_back(text.substr(start, (keep_ends ? end : i) - start));
    start = i = end;
  }
  if (start < text.size()) lines.push_back(text.substr(start));
  return lines;
}

std::string replaced(
    Run& run, std::string_view text, std::string_view old, std::string_view with, Int most) {
  run.spend(text.size());
  std::string out;
  const auto insert = [&] {
    run.spend(with.size());
    out += with;
    return most < 0 || --most > 0;
  };
  if (most == 0) return std::string(text);
  if (old.empty()) {  // before every character and at the end
    bool more = insert();
    while (!text.empty()) {
      const std::size_t bytes = character_bytes(text);
      out += text.substr(0, bytes);
      text.remove_prefix(bytes);
      if (more) more = insert();
    }
    return out;
  }
  for (std::size_t at = 0; (at = text.find(old)) != text.npos;) {
    out += text.substr(0, at);
    text.remove_prefix(at + old.size());
    if (!insert()) break;
  }
  return out += text;
}

std::string justified(
    Run& run, std::string_view text, Int width, std::string_view fill, Align align) {
  const auto length = static_cast<Int>(count_characters(text));
  if (width <= length) return std::string(text);
  const Int missing = width - length;
  run.spend(static_cast<Int>(fill.size()), missing);
  // Python's center puts the odd character on the left where the width is odd.
  const Int left = align == Align::kLeft    ? 0
                   : align == Align::kRight ? missing
                                            : missing / 2 + (missing & width & 1);
  std::string out;
  for (Int i = 0; i < left; ++i) out += fill;
  out += text;
  for (Int i = left; i < missing; ++i) out += fill;
  return out;
}

}  // namespace moiety::jinja
