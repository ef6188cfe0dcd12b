#include "model/jinja_lexer.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "common/utf8.h"
#include "model/jinja_operators.h"
#include "model/jinja_text.h"

namespace moiety::jinja {
namespace {

[[noreturn]] void syntax_error(std::string message) {
  throw Failure{Failure::Kind::kOther, std::move(message)};
}

// Longest first.
constexpr std::array<std::string_view, 26> kOperators = {
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
    "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};

bool is_digit_byte(char c) { return c >= '0' && c <= '9'; }

// One line end for all, and none at the end of the template.
std::string normalized(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (source.substr(i + 1, 1) == "\n") ++i;
    } else {
      out += source[i];
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  Lexer(std::string source, int& line) : source_(std::move(source)), text_(source_), line_(line) {}

  std::vector<Token> run() {
    line_ = 1;
    while (position_ < text_.size()) root();
    add(TokenType::kEnd);
    return std::move(tokens_);
  }

 private:
  std::string_view rest() const { return text_.substr(position_); }
  bool at(std::string_view what) const { return rest().starts_with(what); }

  void advance(std::size_t bytes) {
    const std::string_view passed = text_.substr(position_, bytes);
    line_ += static_cast<int>(std::count(passed.begin(), passed.end(), '\n'));
    position_ += bytes;
    if (bytes > 0) line_starting_ = passed.back() == '\n';
  }

  Token& add(TokenType type, std::string text = {}) {
    Token token;
    token.type = type;
    token.line = line_;
    token.text = std::move(text);
    return tokens_.emplace_back(std::move(token));
  }

  void root();
  void data_before(std::string_view data, char sign, bool is_variable);
  void comment();
  void raw();
  bool raw_begin(std::size_t& bytes) const;
  std::size_t block_end_bytes() const;
  void inside(TokenType end);
  void token();
  void name();
  void number();
  void string();
  void operator_();

  std::string source_;
  std::string_view text_;
  int& line_;
  std::size_t position_ = 0;
  bool line_starting_ = true;
  std::string open_;  // brackets that are open inside a tag
  std::vector<Token> tokens_;
};

// The text before a tag, without what the tag's sign or lstrip_blocks takes away.
void Lexer::data_before(std::string_view data, char sign, bool is_variable) {
  std::string_view kept = data;
  if (sign == '-') {
    kept = strip_right(data);
  } else if (sign != '+' && !is_variable) {
    const std::size_t newline = data.rfind('\n');
    const std::size_t line_start = newline == data.npos ? 0 : newline + 1;
    if (newline != data.npos || line_starting_) {
      const std::string_view margin = data.substr(line_start);
      if (leading_space_bytes(margin) == margin.size()) kept = data.substr(0, line_start);
    }
  }
  if (!kept.empty()) add(TokenType::kData, std::string(kept));
  advance(data.size());
}

void Lexer::root() {
  std::size_t begin = position_;
  for (;; ++begin) {
    begin = text_.find('{', begin);
    if (begin == text_.npos || begin + 1 == text_.size()) {
      add(TokenType::kData, std::string(rest()));
      return advance(rest().size());
    }
    const char next = text_[begin + 1];
    if (next == '%' || next == '{' || next == '#') break;
  }
  const char kind = text_[begin + 1];
  const char after = begin + 2 < text_.size() ? text_[begin + 2] : ' ';
  const char sign = after == '-' || after == '+' ? after : ' ';
  data_before(text_.substr(position_, begin - position_), sign, kind == '{');
  std::size_t raw_bytes = 0;
  if (kind == '%' && raw_begin(raw_bytes)) {
    advance(raw_bytes);
    return raw();
  }
  if (kind != '#') add(kind == '{' ? TokenType::kVariableBegin : TokenType::kBlockBegin);
  advance(sign == ' ' ? 2 : 3);
  if (kind == '#') return comment();
  inside(kind == '{' ? TokenType::kVariableEnd : TokenType::kBlockEnd);
}

void Lexer::comment() {
  for (std::size_t i = position_; i < text_.size(); ++i) {
    const std::string_view here = text_.substr(i);
    std::size_t bytes = 0;
    if (here.starts_with("+#}")) {
      bytes = 3;
    } else if (here.starts_with("-#}")) {
      bytes = 3 + leading_space_bytes(here.substr(3));
    } else if (here.starts_with("#}")) {
      bytes = here.substr(2, 1) == "\n" ? 3 : 2;
    } else {
      continue;
    }
    return advance(i - position_ + bytes);
  }
  syntax_error("Missing end of comment tag");
}

// `{% raw %}`, in its spellings.
bool Lexer::raw_begin(std::size_t& bytes) const {
  std::string_view tag = rest();
  tag.remove_prefix(2);
  if (tag.starts_with('-') || tag.starts_with('+')) tag.remove_prefix(1);
  tag.remove_prefix(leading_space_bytes(tag));
  if (!tag.starts_with("raw")) return false;
  tag.remove_prefix(3);
  tag.remove_prefix(leading_space_bytes(tag));
  if (tag.starts_with("-%}")) {
    tag.remove_prefix(3);
    tag.remove_prefix(leading_space_bytes(tag));
  } else if (tag.starts_with("%}")) {
    tag.remove_prefix(2);
  } else {
    return false;
  }
  bytes = rest().size() - tag.size();
  return true;
}

void Lexer::raw() {
  for (std::size_t i = text_.find("{%", position_); i != text_.npos; i = text_.find("{%", i + 1)) {
    std::string_view tag = text_.substr(i + 2);
    const char sign = tag.starts_with('-') || tag.starts_with('+') ? tag[0] : ' ';
    if (sign != ' ') tag.remove_prefix(1);
    tag.remove_prefix(leading_space_bytes(tag));
    if (!tag.starts_with("endraw")) continue;
    tag.remove_prefix(6);
    tag.remove_prefix(leading_space_bytes(tag));
    const std::size_t end = text_.size() - tag.size();
    if (!tag.starts_with("%}") && !tag.starts_with("-%}") && !tag.starts_with("+%}")) continue;
    data_before(text_.substr(position_, i - position_), sign, false);
    advance(end - position_);
    return advance(block_end_bytes());
  }
  syntax_error("Missing end of raw directive");
}

// Bytes of the end of a block here, with what it swallows; 0: it does not end here.
std::size_t Lexer::block_end_bytes() const {
  if (at("+%}")) return 3;
  if (at("-%}")) return 3 + leading_space_bytes(rest().substr(3));
  if (at("%}")) return rest().substr(2, 1) == "\n" ? 3 : 2;
  return 0;
}

void Lexer::inside(TokenType end) {
  open_.clear();
  while (position_ < text_.size()) {
    if (open_.empty()) {
      std::size_t bytes = 0;
      if (end == TokenType::kBlockEnd) {
        bytes = block_end_bytes();
      } else if (at("-}}")) {
        bytes = 3 + leading_space_bytes(rest().substr(3));
      } else if (at("}}")) {
        bytes = 2;
      }
      if (bytes > 0) {
        add(end);
        return advance(bytes);
      }
    }
    token();
  }
}

void Lexer::token() {
  const std::size_t space = leading_space_bytes(rest());
  if (space > 0) return advance(space);
  const char c = rest()[0];
  if (is_digit_byte(c)) return number();
  if (c == '\'' || c == '"') return string();
  if (is_identifier_part(first_character(rest()))) return name();
  operator_();
}

void Lexer::name() {
  std::size_t bytes = 0;
  if (!is_identifier_start(first_character(rest())))
    syntax_error("Invalid character in identifier");
  while (bytes < rest().size() && is_identifier_part(first_character(rest().substr(bytes)))) {
    bytes += character_bytes(rest().substr(bytes));
  }
  add(TokenType::kName, std::string(rest().substr(0, bytes)));
  advance(bytes);
}

// Digits with single underscores between them, from `from` on; returns where they end.
std::size_t digits_end(std::string_view text, std::size_t from, bool (*is_digit)(char)) {
  std::size_t end = from;
  while (end < text.size()) {
    if (is_digit(text[end])) {
      ++end;
    } else if (text[end] == '_' && end > from && end + 1 < text.size() && is_digit(text[end + 1])) {
      end += 2;
    } else {
      break;
    }
  }
  return end;
}

void Lexer::number() {
  const std::string_view text = rest();
  const bool after_point = position_ > 0 && text_[position_ - 1] == '.';
  const std::size_t whole = digits_end(text, 0, is_digit_byte);
  std::size_t end = whole;
  if (!after_point) {
    if (text.substr(end, 1) == ".") {
      const std::size_t fraction = digits_end(text, end + 1, is_digit_byte);
      if (fraction > end + 1) end = fraction;
    }
    if (end < text.size() && (text[end] | 0x20) == 'e') {
      const bool sign = end + 1 < text.size() && (text[end + 1] == '+' || text[end + 1] == '-');
      const std::size_t first = end + 1 + (sign ? 1 : 0);
      const std::size_t exponent = digits_end(text, first, is_digit_byte);
      if (exponent > first) end = exponent;
    }
  }
  if (end > whole) {
    add(TokenType::kFloat).real = parse_float(text.substr(0, end)).value();
    return advance(end);
  }
  std::size_t integer_end = whole;
  if (text[0] == '0') {
    const char base = text.size() > 1 ? static_cast<char>(text[1] | 0x20) : ' ';
    const std::size_t prefix = text.size() > 2 && text[2] == '_' ? 3 : 2;
    const auto digit =
        base == 'x'
            ? [](char c) { return is_digit_byte(c) || ((c | 0x20) >= 'a' && (c | 0x20) <= 'f'); }
        : base == 'o' ? [](char c) { return c >= '0' && c <= '7'; }
                      : [](char c) { return c == '0' || c == '1'; };
    const bool prefixed = base == 'x' || base == 'o' || base == 'b';
    if (prefixed && text.size() > prefix && digit(text[prefix])) {
      integer_end = digits_end(text, prefix, digit);
    } else {  // Jinja reads 012 as 0 and 12
      integer_end = digits_end(text, 0, [](char c) { return c == '0'; });
    }
  }
  add(TokenType::kInteger).integer = parse_integer(text.substr(0, integer_end), 0).value();
  advance(integer_end);
}

// What \ and the following characters of a string literal stand for; advances `i` beyond them.
void unescape_one(std::string_view text, std::size_t& i, std::string& out) {
  const char c = text[++i];
  ++i;
  const auto hex = [&](std::size_t digits) {
    char32_t value = 0;
    const char* begin = text.data() + i;
    std::uint32_t parsed = 0;
    if (text.size() - i < digits ||
        std::from_chars(begin, begin + digits, parsed, 16).ptr != begin + digits) {
      syntax_error(words({"truncated \\", std::string(1, c), " escape"}));
    }
    value = parsed;
    if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF))
      syntax_error("illegal character in an escape");
    i += digits;
    append_code_point(value, out);
  };
  switch (c) {
    case '\n':
      return;
    case '\\':
    case '\'':
    case '"':
      out += c;
      return;
    case 'a':
      out += '\a';
      return;
    case 'b':
      out += '\b';
      return;
    case 'f':
      out += '\f';
      return;
    case 'n':
      out += '\n';
      return;
    case 'r':
      out += '\r';
      return;
    case 't':
      out += '\t';
      return;
    case 'v':
      out += '\v';
      return;
    case 'x':
      return hex(2);
    case 'u':
      return hex(4);
    case 'U':
      return hex(8);
    case 'N':
      unsupported("the escape \\N{...}");
    default:
      break;
  }
  if (c >= '0' && c <= '7') {
    char32_t value = static_cast<char32_t>(c - '0');
    for (int more = 0; more < 2 && i < text.size() && text[i] >= '0' && text[i] <= '7';
         ++more, ++i) {
      value = value * 8 + static_cast<char32_t>(text[i] - '0');
    }
    return append_code_point(value, out);
  }
  out += '\\';  // Python keeps unknown escapes
  --i;
}

void Lexer::string() {
  const std::string_view text = rest();
  const char quote = text[0];
  std::size_t end = 1;
  while (end < text.size() && text[end] != quote) end += text[end] == '\\' ? 2 : 1;
  if (end >= text.size()) syntax_error("a string without its closing quote");
  const std::string_view body = text.substr(1, end - 1);
  // Python spells other characters as escapes first, so a backslash before one meets the spelling's
  // own backslash.
  std::string spelled;
  for (std::size_t i = 0; i < body.size();) {
    if (body[i] == '\\' && i + 1 < body.size() && static_cast<unsigned char>(body[i + 1]) >= 0x80) {
      const char32_t c = first_character(body.substr(i + 1));
      std::array<char, 16> digits;
      const int width = c < 0x100 ? 2 : c < 0x10000 ? 4 : 8;
      std::snprintf(digits.data(), digits.size(), "%0*x", width, static_cast<unsigned>(c));
      spelled += width == 2 ? "\\\\x" : width == 4 ? "\\\\u" : "\\\\U";
      spelled += digits.data();
      i += 1 + character_bytes(body.substr(i + 1));
    } else if (body[i] == '\\' && i + 1 < body.size()) {
      spelled += body.substr(i, 2);
      i += 2;
    } else {
      spelled += body[i++];
    }
  }
  std::string value;
  for (std::size_t i = 0; i < spelled.size();) {
    if (spelled[i] == '\\' && i + 1 < spelled.size()) {
      unescape_one(spelled, i, value);
    } else {
      value += spelled[i++];
    }
  }
  add(TokenType::kString, std::move(value));
  advance(end + 1);
}

void Lexer::operator_() {
  for (std::string_view candidate : kOperators) {
    if (!at(candidate)) continue;
    const char c = candidate[0];
    if (c == '(' || c == '[' || c == '{') open_ += c == '(' ? ')' : c == '[' ? ']' : '}';
    if (c == ')' || c == ']' || c == '}') {
      if (open_.empty()) syntax_error(words({"unexpected '", candidate, "'"}));
      if (open_.back() != c)
        syntax_error(words(
            {"unexpected '", candidate, "', expected '", open_.substr(open_.size() - 1), "'"}));
      open_.pop_back();
    }
    add(TokenType::kOperator, std::string(candidate));
    return advance(candidate.size());
  }
  syntax_error(words({"unexpected character ", quoted(rest().substr(0, character_bytes(rest())))}));
}

}  // namespace

std::vector<Token> tokenize(std::string_view source, int& line) {
  return Lexer(normalized(source), line).run();
}

}  // namespace moiety::jinja
