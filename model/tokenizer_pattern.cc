#include "model/tokenizer_pattern.h"

#include <fmt/format.h>

#include <cctype>
#include <cstdint>
#include <vector>

#include "model/tokenizer_unicode.h"

namespace moiety {
namespace {

bool is_hex(std::string_view text) {
  for (char c : text) {
    if (std::isxdigit(static_cast<unsigned char>(c)) == 0) return false;
  }
  return !text.empty();
}

std::string white_space_class() {
  std::string body;
  for (CodePointRange range : white_space_ranges()) {
    body += fmt::format("\\x{{{:x}}}-\\x{{{:x}}}", static_cast<std::uint32_t>(range.first),
                        static_cast<std::uint32_t>(range.last));
  }
  return body;
}

// An escape of one character, or of a set of them with the body of the class that it means.
struct Escape {
  bool is_set = false;
  bool negated = false;
  std::string text;
};

class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  Result<std::string> run() {
    while (position_ < in_.size()) MOIETY_TRY(item());
    return std::move(out_);
  }

 private:
  bool at(std::string_view text) const { return in_.substr(position_).starts_with(text); }

  Error refuse(std::string_view construct) const {
    return fail(ErrorCode::kInvalidArgument,
                fmt::format("{} at byte {} of the pattern is not supported", construct, position_));
  }

  Result<void> item() {
    const char c = in_[position_];
    if (c != '{') interval_ended_ = interval_ended_ && (c == '+' || c == '?' || c == '*');
    switch (c) {
      case '\\':
        return escape_outside();
      case '[':
        previous_ = '\0';
        return char_class();
      case '(':
        previous_ = '\0';
        return open_group();
      case ')':
        if (caseless_.size() > 1) caseless_.pop_back();
        break;
      case '{':
        return interval();
      case '+':
      case '?':
      case '*':
        // Ruby reads x{2}+ as (x{2})+ and x{2}? as (x{2})?, PCRE2 as possessive and lazy.
        if (interval_ended_) return refuse("a quantifier after {}");
        break;
      case '^':
      case '$':  // Ruby's anchors are those of lines
        out_ += fmt::format("(?m:{})", c);
        ++position_;
        previous_ = '\0';
        return {};
      default:
        MOIETY_TRY(note_literal(c));
        out_ += c;
        ++position_;
        return {};
    }
    previous_ = '\0';
    out_ += c;
    ++position_;
    return {};
  }

  // Oniguruma also matches single characters that fold to two letters: (?i:ss) matches U+00DF.
  Result<void> note_literal(char c) {
    const char lower = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    if (caseless_.back()) {
      const bool folds = (previous_ == 's' && (lower == 's' || lower == 't')) ||
                         (previous_ == 'f' && (lower == 'f' || lower == 'i' || lower == 'l'));
      if (folds) return refuse(fmt::format("\"{}{}\" regardless of case", previous_, lower));
      if (static_cast<unsigned char>(c) >= 0x80) return refuse("non-ASCII text regardless of case");
    }
    previous_ = lower;
    return {};
  }

  Result<void> open_group() {
    if (at("(*")) return refuse("(*");
    if (!at("(?")) {
      out_ += "(?:";  // nothing refers to captures
      ++position_;
      caseless_.push_back(caseless_.back());
      return {};
    }
    if (position_ == 0 && at("(?i)")) {
      caseless_.back() = true;
      return copy(4);
    }
    for (std::string_view opening : {"(?i:", "(?-i:"}) {
      if (!at(opening)) continue;
      caseless_.push_back(opening == "(?i:");
      return copy(opening.size());
    }
    for (std::string_view opening : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"}) {
      if (!at(opening)) continue;
      caseless_.push_back(caseless_.back());
      return copy(opening.size());
    }
    return refuse(in_.substr(position_, 4));
  }

  Result<void> copy(std::size_t bytes) {
    out_ += in_.substr(position_, bytes);
    position_ += bytes;
    return {};
  }

  Result<void> interval() {
    const std::size_t close = in_.find('}', position_);
    const std::string_view body =
        close == std::string_view::npos ? "" : in_.substr(position_ + 1, close - position_ - 1);
    const bool starts_with_digit =
        !body.empty() && std::isdigit(static_cast<unsigned char>(body[0]));
    if (!starts_with_digit || body.find_first_not_of("0123456789,") != std::string_view::npos) {
      return refuse("{ that is not {n}, {n,} or {n,m}");
    }
    if (interval_ended_) return refuse("a quantifier after {}");
    interval_ended_ = true;
    previous_ = '\0';
    return copy(close + 1 - position_);
  }

  Result<void> escape_outside() {
    if (at("\\A") || at("\\z") || at("\\Z")) {
      previous_ = '\0';
      return copy(2);
    }
    MOIETY_ASSIGN(const Escape escape, read_escape());
    previous_ = '\0';
    if (escape.is_set) {
      out_ += fmt::format("[{}{}]", escape.negated ? "^" : "", escape.text);
    } else {
      out_ += escape.text;
    }
    return {};
  }

  // At a backslash; moves past the escape.
  Result<Escape> read_escape() {
    if (position_ + 1 == in_.size()) return refuse("\\ at the end");
    const char c = in_[position_ + 1];
    switch (c) {
      case 'r':
      case 'n':
      case 't':
      case 'f':
      case 'a':
      case 'e':
        position_ += 2;
        return Escape{.text = {'\\', c}};
      case 'v':
        position_ += 2;
        return Escape{.text = "\\x{b}"};
      case 'd':
      case 'D':
        position_ += 2;
        return Escape{.is_set = true, .negated = c == 'D', .text = category_class("Nd")};
      case 's':
      case 'S':
        position_ += 2;
        return Escape{.is_set = true, .negated = c == 'S', .text = white_space_class()};
      case 'p':
      case 'P':
        return read_property(c == 'P');
      case 'x':
      case 'u':
        return read_code();
      default:
        break;
    }
    if (std::isalnum(static_cast<unsigned char>(c)) != 0) return refuse(in_.substr(position_, 2));
    position_ += 2;
    // A backslash before a character that is not ASCII changes nothing; PCRE2 has no such escape.
    if (static_cast<unsigned char>(c) >= 0x80) return Escape{.text = {c}};
    return Escape{.text = {'\\', c}};
  }

  Result<Escape> read_property(bool negated) {
    const std::size_t close = in_.find('}', position_);
    if (position_ + 2 >= in_.size() || in_[position_ + 2] != '{' ||
        close == std::string_view::npos) {
      return refuse("\\p without {...}");
    }
    std::string_view name = in_.substr(position_ + 3, close - position_ - 3);
    if (name.starts_with('^')) {
      negated = !negated;
      name.remove_prefix(1);
    }
    const bool cased = name == "Lu" || name == "Ll" || name == "Lt";
    if (!is_known_category(name) || (cased && caseless_.back())) {
      return refuse(in_.substr(position_, close + 1 - position_));
    }
    position_ = close + 1;
    return Escape{.is_set = true, .negated = negated, .text = category_class(name)};
  }

  // \xHH below 0x80 (above it is a byte in Oniguruma), \x{H...}, \uHHHH.
  Result<Escape> read_code() {
    std::string_view digits;
    std::size_t length = 0;
    if (at("\\x{")) {
      const std::size_t close = in_.find('}', position_);
      if (close != std::string_view::npos)
        digits = in_.substr(position_ + 3, close - position_ - 3);
      length = digits.size() + 4;
      if (digits.size() > 6) digits = {};
    } else {
      const std::size_t count = at("\\u") ? 4 : 2;
      digits = in_.substr(position_ + 2, count);
      length = count + 2;
      if (digits.size() != count || (count == 2 && digits[0] > '7')) digits = {};
    }
    if (caseless_.back()) return refuse("a character code regardless of case");
    if (!is_hex(digits)) return refuse("this form of a character code");
    Escape escape{.text = fmt::format("\\x{{{}}}", digits)};
    position_ += length;
    return escape;
  }

  Result<void> char_class() {
    out_ += '[';
    ++position_;
    if (at("^")) MOIETY_TRY(copy(1));
    if (at("]")) return refuse("an empty class");
    bool may_start_range = false;  // the last item was one character
    bool in_range = false;         // just after "a-"
    for (;;) {
      if (position_ == in_.size()) return refuse("a class without ]");
      if (at("]")) return copy(1);
      if (at("[")) return refuse("[ inside a class");
      if (at("&&")) return refuse("&& inside a class");
      const char c = in_[position_];
      if (c == '-' && !in_range) {
        const bool last = in_.substr(position_ + 1).starts_with(']');
        in_range = may_start_range && !last;
        may_start_range = false;
        out_ += in_range ? "-" : "\\-";
        ++position_;
        continue;
      }
      if (c == '\\') {
        const bool not_space = at("\\S");
        MOIETY_ASSIGN(Escape escape, read_escape());
        if (escape.is_set && in_range) return refuse("a range that ends in a set");
        if (not_space) {
          escape.text = "\\S\\x{180e}";  // PCRE2's \s has this one character more
        } else if (escape.negated) {
          return refuse("a negated set inside a class");
        }
        out_ += escape.text;
        may_start_range = !escape.is_set && !in_range;
      } else {
        if (caseless_.back() && static_cast<unsigned char>(c) >= 0x80) {
          return refuse("non-ASCII text regardless of case");
        }
        do {
          out_ += in_[position_++];
        } while (position_ < in_.size() &&
                 (static_cast<unsigned char>(in_[position_]) & 0xC0u) == 0x80);
        may_start_range = !in_range;
      }
      in_range = false;
    }
  }

  std::string_view in_;
  std::size_t position_ = 0;
  std::string out_;
  std::vector<bool> caseless_ = {false};  // one entry per open group
  char previous_ = '\0';                  // the literal before this one, in lower case
  bool interval_ended_ = false;           // just after {n,m}
};

}  // namespace

Result<std::string> translate_pattern(std::string_view pattern) {
  return Translator(pattern).run();
}

}  // namespace moiety
