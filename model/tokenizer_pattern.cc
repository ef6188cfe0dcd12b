#include "model/tokenizer_pattern.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <iterator>
#include <optional>
#include <utility>
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

bool is_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

// PCRE2's expression for one character of a set. Negated sets and unions are written as such
// expressions where a class of PCRE2 cannot hold them; groups are atomic, as each branch takes one
// character.
std::string one_of(const CharacterSet& set) {
  if (set.except.empty()) return fmt::format("[{}{}]", set.negated ? "^" : "", set.body);
  return set.negated ? fmt::format("(?>[{}]|[^{}])", set.except, set.body)
                     : fmt::format("(?>(?![{}])[{}])", set.except, set.body);
}

// An escape of one character, or of a set of them.
struct Escape {
  std::string character = {};
  std::optional<CharacterSet> set = {};
};

// One side of && in a class: what PCRE2 can have in a class, and expressions for one character.
struct Union {
  std::string body;
  std::vector<std::string> others;

  bool empty() const { return body.empty() && others.empty(); }
  std::string expression() const {
    if (others.empty()) return fmt::format("[{}]", body);
    if (body.empty() && others.size() == 1) return others[0];
    return fmt::format("(?>{}{})", body.empty() ? "" : fmt::format("[{}]|", body),
                       fmt::join(others, "|"));
  }
};

// Which groups keep what they matched: in Oniguruma a pattern's named ones, or all if none is
// named. In PCRE2's expression none does unless the pattern has back references.
enum class Captures { kNone, kNamed, kAll };

class Translator {
 public:
  Translator(std::string_view pattern, Captures captures) : in_(pattern), captures_(captures) {}

  Result<std::string> run() {
    while (position_ < in_.size()) MOIETY_TRY(item());
    return std::move(out_);
  }

  /// What a pattern needs that was run with kNone.
  Captures wanted() const {
    if (!has_references_) return Captures::kNone;
    return names_.empty() ? Captures::kAll : Captures::kNamed;
  }

 private:
  bool at(std::string_view text) const { return in_.substr(position_).starts_with(text); }
  bool caseless() const { return open_.back().caseless; }

  Error refuse(std::string_view construct) const {
    return fail(ErrorCode::kInvalidArgument,
                fmt::format("{} at byte {} of the pattern is not supported", construct, position_));
  }

  Result<void> item() {
    const char c = in_[position_];
    if (c == '{') return interval();
    if (c == '+' || c == '?' || c == '*') return quantifier(c);
    after_ = After::kOther;
    if ((static_cast<unsigned char>(c) & 0xC0u) != 0x80) atom_ = out_.size();
    switch (c) {
      case '\\':
        return escape_outside();
      case '[':
        previous_ = '\0';
        return outer_class();
      case '(':
        previous_ = '\0';
        return open_group();
      case ')':
        if (open_.size() > 1) {
          atom_ = open_.back().begin;
          if (open_.back().capture > 0) closed_[open_.back().capture - 1] = true;
          open_.pop_back();
        }
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
    if (caseless()) {
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
    if (!at("(?")) return open_capture(1, captures_ == Captures::kAll);
    if (position_ == 0 && at("(?i)")) {
      open_.back().caseless = true;
      return copy(4);
    }
    for (std::string_view opening : {"(?i:", "(?-i:", "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"}) {
      if (!at(opening)) continue;
      const bool switches = opening == "(?i:" || opening == "(?-i:";
      open_.push_back(
          {.caseless = switches ? opening == "(?i:" : caseless(), .begin = out_.size()});
      return copy(opening.size());
    }
    if (at("(?<")) return open_named();
    return refuse(in_.substr(position_, 4));
  }

  Result<void> open_named() {
    const std::string_view name = name_at(position_ + 3);
    if (name.empty()) return refuse("this name of a group");
    if (std::find(names_.begin(), names_.end(), name) != names_.end()) {
      return refuse(fmt::format("a second group named {}", name));
    }
    names_.push_back(name);
    return open_capture(name.size() + 4, captures_ == Captures::kNamed);
  }

  /// At a group's opening of so many bytes; `keeps`: what it matches is for back references.
  Result<void> open_capture(std::size_t bytes, bool keeps) {
    open_.push_back({.caseless = caseless(), .begin = out_.size()});
    if (keeps) {
      closed_.push_back(false);
      open_.back().capture = closed_.size();
    }
    out_ += keeps ? "(" : "(?:";
    position_ += bytes;
    return {};
  }

  /// The name between `begin` and the next >; empty if it is none. Digits alone are one.
  std::string_view name_at(std::size_t begin) const {
    const std::string_view rest = in_.substr(std::min(begin, in_.size()));
    const std::size_t size = std::min(rest.find('>'), rest.size());
    const bool sound =
        size < rest.size() && std::all_of(rest.begin(), rest.begin() + size, is_name);
    return sound ? rest.substr(0, size) : std::string_view();
  }

  /// \N or \k<...>, to a group that is closed: engines differ in what others hold.
  Result<void> back_reference() {
    has_references_ = true;
    const bool by_name = at("\\k");
    std::string_view name;
    if (by_name) {
      if (at("\\k<")) name = name_at(position_ + 3);
    } else {
      const std::string_view rest = in_.substr(position_ + 1);
      name = rest.substr(0, std::min(rest.find_first_not_of("0123456789"), rest.size()));
    }
    if (name.empty()) return refuse("this form of a back reference");
    const std::size_t bytes = name.size() + (by_name ? 4 : 1);
    if (captures_ != Captures::kNone) {
      const std::size_t number = group_number(name);
      if (number == 0 || number > closed_.size() || !closed_[number - 1]) {
        return refuse(
            fmt::format("{}, which is not after its group,", in_.substr(position_, bytes)));
      }
      if (caseless()) return refuse("a back reference regardless of case");
      out_ += fmt::format("\\g{{{}}}", number);
    }
    position_ += bytes;
    return {};
  }

  /// Counted from 1; 0: there is none.
  std::size_t group_number(std::string_view name) const {
    if (captures_ == Captures::kNamed) {
      const auto found = std::find(names_.begin(), names_.end(), name);
      return found == names_.end() ? 0 : static_cast<std::size_t>(found - names_.begin()) + 1;
    }
    std::size_t number = 0;
    const auto done = std::from_chars(name.data(), name.data() + name.size(), number);
    return done.ec == std::errc() && done.ptr == name.data() + name.size() ? number : 0;
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
    MOIETY_TRY(enclose_interval());
    after_ = body.find(',') == std::string_view::npos ? After::kCount : After::kRange;
    previous_ = '\0';
    return copy(close + 1 - position_);
  }

  Result<void> quantifier(char c) {
    if (after_ == After::kRange && c == '?') {
      after_ = After::kLazyRange;
    } else {
      MOIETY_TRY(enclose_interval());
      after_ = After::kOther;
    }
    previous_ = '\0';
    return copy(1);
  }

  // Before a quantifier. Ruby reads x{1,3}+ as (x{1,3})+ and x{2}? as (x{2})?, where PCRE2 has
  // possessive and lazy ones; x{1,3}? is lazy in both.
  Result<void> enclose_interval() {
    if (after_ == After::kOther) return {};
    if (++enclosed_ > kMostEnclosed) return refuse("a quantifier after so many {}");
    out_.insert(atom_, "(?:");
    out_ += ')';
    return {};
  }

  Result<void> escape_outside() {
    previous_ = '\0';
    if (at("\\K") && open_.size() > 1) return refuse("\\K in a group");
    for (std::string_view same : {"\\A", "\\z", "\\Z", "\\G", "\\K"}) {
      if (at(same)) return copy(2);
    }
    if (at("\\R")) {
      out_ += "(?>\\r\\n|[\\n-\\r\\x{85}\\x{2028}\\x{2029}])";
      position_ += 2;
      return {};
    }
    if (at("\\k") ||
        (position_ + 1 < in_.size() && in_[position_ + 1] >= '1' && in_[position_ + 1] <= '9')) {
      return back_reference();
    }
    if (at("\\b") || at("\\B")) {
      const std::string word = one_of(word_set(false));
      out_ += at("\\b") ? fmt::format("(?:(?<={0})(?!{0})|(?<!{0})(?={0}))", word)
                        : fmt::format("(?:(?<={0})(?={0})|(?<!{0})(?!{0}))", word);
      position_ += 2;
      return {};
    }
    MOIETY_ASSIGN(const Escape escape, read_escape(false));
    // (?i) leaves sets alone that are not in a class.
    out_ += !escape.set  ? escape.character
            : caseless() ? fmt::format("(?-i:{})", one_of(*escape.set))
                         : one_of(*escape.set);
    return {};
  }

  // At a backslash; moves past the escape.
  Result<Escape> read_escape(bool in_class) {
    if (position_ + 1 == in_.size()) return refuse("\\ at the end");
    const char c = in_[position_ + 1];
    const auto set_of = [&](CharacterSet set) {
      position_ += 2;
      set.negated = std::isupper(static_cast<unsigned char>(c)) != 0;
      return Escape{.set = std::move(set)};
    };
    switch (c) {
      case 'r':
      case 'n':
      case 't':
      case 'f':
      case 'a':
      case 'e':
        position_ += 2;
        return Escape{.character = {'\\', c}};
      case 'v':
        position_ += 2;
        return Escape{.character = "\\x{b}"};
      case 'b':
        if (!in_class) break;
        position_ += 2;
        return Escape{.character = "\\x{8}"};
      case 'd':
      case 'D':
        return set_of(decimal_digit_set());
      case 's':
      case 'S':
        return set_of(white_space_set());
      case 'w':
      case 'W':
        return set_of(word_set(in_class));
      case 'h':
      case 'H':
        return set_of({.body = "0-9A-Fa-f"});
      case 'p':
      case 'P':
        return read_property(in_class, c == 'P');
      case 'x':
      case 'u':
        return read_code();
      default:
        break;
    }
    if (std::isalnum(static_cast<unsigned char>(c)) != 0) return refuse(in_.substr(position_, 2));
    position_ += 2;
    // A backslash before a character that is not ASCII changes nothing; PCRE2 has no such escape.
    if (static_cast<unsigned char>(c) >= 0x80) return Escape{.character = {c}};
    return Escape{.character = {'\\', c}};
  }

  Result<Escape> read_property(bool in_class, bool negated) {
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
    std::optional<CharacterSet> set = property_set(name);
    if (!set) return refuse(in_.substr(position_, close + 1 - position_));
    if (caseless() && in_class && !is_closed(name)) {
      return refuse(
          fmt::format("{} regardless of case", in_.substr(position_, close + 1 - position_)));
    }
    position_ = close + 1;
    set->negated = set->negated != negated;
    return Escape{.set = std::move(set)};
  }

  // In a class, (?i) adds the other case of all that is in it. True for sets to which that adds
  // nothing; U+0345 is a mark whose other case is a letter.
  static bool is_closed(std::string_view name) {
    static constexpr std::string_view kClosed[] = {
        "L",  "Lm", "Lo", "N",  "Nd", "Nl", "No", "P", "Pc", "Pd", "Ps", "Pe", "Pi",
        "Pf", "Po", "S",  "Sm", "Sc", "Sk", "So", "Z", "Zs", "Zl", "Zp", "Cc"};
    return std::find(std::begin(kClosed), std::end(kClosed), name) != std::end(kClosed);
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
    if (caseless()) return refuse("a character code regardless of case");
    if (!is_hex(digits)) return refuse("this form of a character code");
    Escape escape{.character = fmt::format("\\x{{{}}}", digits)};
    position_ += length;
    return escape;
  }

  Result<void> outer_class() {
    MOIETY_ASSIGN(const std::string expression, char_class(0));
    out_ += expression;
    return {};
  }

  // At [; moves past its ]. An expression for one character of the class.
  Result<std::string> char_class(int depth) {
    if (depth > kMaxDepth) return refuse("a class inside of so many others");
    ++position_;
    const bool negated = at("^");
    if (negated) ++position_;
    if (at("]")) return refuse("an empty class");
    std::vector<Union> sides(1);
    bool may_start_range = false;  // the last item was one character
    bool in_range = false;         // just after "a-"
    bool after_set = false;        // the last item was an escape of a set
    while (!at("]")) {
      if (position_ == in_.size()) return refuse("a class without ]");
      const bool wanted_end = in_range;
      in_range = false;
      Union& side = sides.back();
      const char c = in_[position_];
      if (at("&&")) {
        if (side.empty()) return refuse("&& after nothing");
        sides.emplace_back();
        position_ += 2;
        may_start_range = after_set = false;
      } else if (c == '[') {
        if (wanted_end) return refuse("a range that ends in a set");
        MOIETY_TRY(inner_class(side, depth));
        may_start_range = after_set = false;
      } else if (c == '-' && !wanted_end) {
        const std::string_view after = in_.substr(position_ + 1);
        const bool last = after.starts_with(']') || after.starts_with("&&");
        if (after_set && !last) return refuse("a range that starts with a set");
        in_range = may_start_range && !last;
        may_start_range = after_set = false;
        side.body += in_range ? "-" : "\\-";
        ++position_;
      } else if (c == '\\') {
        const std::size_t begin = position_;
        MOIETY_ASSIGN(const Escape escape, read_escape(true));
        const std::string_view written = in_.substr(begin, position_ - begin);
        const bool not_space = written == "\\S";
        // Oniguruma's class then also matches two letters that one folds to, as note_literal says.
        if (caseless() && !negated && (not_space || written == "\\w" || written == "\\p{L}")) {
          return refuse(fmt::format("{} in a class, regardless of case,", written));
        }
        if (escape.set && wanted_end) return refuse("a range that ends in a set");
        if (!escape.set) {
          side.body += escape.character;
        } else if (not_space) {
          side.body += "\\S\\x{180e}";  // PCRE2's \s has this one character more
        } else if (escape.set->negated || !escape.set->except.empty()) {
          side.others.push_back(one_of(*escape.set));
        } else {
          side.body += escape.set->body;
        }
        after_set = escape.set.has_value();
        may_start_range = !escape.set && !wanted_end;
      } else {
        if (caseless() && static_cast<unsigned char>(c) >= 0x80) {
          return refuse("non-ASCII text regardless of case");
        }
        if (c == '^') side.body += '\\';
        do {
          side.body += in_[position_++];
        } while (position_ < in_.size() &&
                 (static_cast<unsigned char>(in_[position_]) & 0xC0u) == 0x80);
        may_start_range = !wanted_end;
        after_set = false;
      }
    }
    if (sides.back().empty()) return refuse("&& before nothing");
    ++position_;
    return expression_of(sides, negated);
  }

  Result<void> inner_class(Union& side, int depth) {
    if (!at("[:")) {
      MOIETY_ASSIGN(std::string expression, char_class(depth + 1));
      side.others.push_back(std::move(expression));
      return {};
    }
    const std::size_t close = in_.find(":]", position_ + 2);
    std::string_view name = in_.substr(position_ + 2);
    if (close != std::string_view::npos) name = in_.substr(position_ + 2, close - position_ - 2);
    const bool negated = name.starts_with('^');
    if (negated) name.remove_prefix(1);
    std::optional<CharacterSet> set = posix_set(name);
    if (!set || close == std::string_view::npos) return refuse("[: that is no known [:name:]");
    if (caseless()) return refuse(fmt::format("[:{}:] regardless of case", name));
    position_ = close + 2;
    if (negated) {
      set->negated = true;
      side.others.push_back(one_of(*set));
    } else {
      side.body += set->body;
    }
    return {};
  }

  Result<std::string> expression_of(const std::vector<Union>& sides, bool negated) const {
    if (sides.size() == 1 && sides[0].others.empty()) {
      return fmt::format("[{}{}]", negated ? "^" : "", sides[0].body);
    }
    if (caseless()) return refuse("a set made of others, regardless of case");
    std::string expression;
    for (std::size_t i = 0; i + 1 < sides.size(); ++i) {
      expression += fmt::format("(?={})", sides[i].expression());
    }
    expression += sides.back().expression();
    return negated ? fmt::format("(?>(?!{})(?s:.))", expression)
                   : fmt::format("(?>{})", expression);
  }

  static constexpr int kMaxDepth = 16;
  static constexpr int kMostEnclosed = 200;  // each may move all of out_

  std::string_view in_;
  std::size_t position_ = 0;
  std::string out_;
  Captures captures_;
  bool has_references_ = false;
  std::vector<std::string_view> names_;  // of groups, in order
  std::vector<bool> closed_;             // of the groups that capture, in order: whether it ended
  struct Group {
    bool caseless = false;
    std::size_t begin = 0;    // where in out_
    std::size_t capture = 0;  // its number, if it captures
  };
  std::vector<Group> open_ = {{}};  // the pattern itself first
  char previous_ = '\0';            // the literal before this one, in lower case
  // What stands just before: {n}, {n,} or {n,m}, one of the latter with ?, or something else.
  enum class After { kOther, kCount, kRange, kLazyRange };
  After after_ = After::kOther;
  std::size_t atom_ = 0;  // where in out_ that begins which a quantifier is for
  int enclosed_ = 0;
};

}  // namespace

Result<std::string> translate_pattern(std::string_view pattern) {
  Translator plain(pattern, Captures::kNone);
  auto translated = plain.run();
  const Captures wanted = plain.wanted();
  return wanted == Captures::kNone ? translated : Translator(pattern, wanted).run();
}

}  // namespace moiety
