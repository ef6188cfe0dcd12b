// `format % arguments` and str.format.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "model/jinja_operators.h"
#include "model/jinja_text.h"

namespace moiety::jinja {
namespace {

constexpr Int kMaxWidth = 1'000'000;
constexpr int kMaxPrecision = 400;

struct Conversion {
  bool left = false, plus = false, space = false, zero = false, alternate = false;
  Int width = 0;
  int precision = -1;
  char type = 0;
};

// Pads a formatted number or text; zeros go between the sign (or 0x) and the digits.
std::string padded(const Conversion& how, std::string_view prefix, std::string_view body) {
  const std::size_t length = count_characters(prefix) + count_characters(body);
  const auto width = static_cast<std::size_t>(how.width);
  const std::size_t fill = width > length ? width - length : 0;
  std::string out;
  if (!how.left && !how.zero) out.append(fill, ' ');
  out += prefix;
  if (!how.left && how.zero) out.append(fill, '0');
  out += body;
  if (how.left) out.append(fill, ' ');
  return out;
}

std::string format_integer(const Conversion& how, Int value) {
  std::string digits;
  const bool negative = value < 0;
  auto rest = static_cast<unsigned __int128>(value);
  if (negative) rest = -rest;
  const unsigned base = how.type == 'o' ? 8 : how.type == 'x' || how.type == 'X' ? 16 : 10;
  const std::string_view alphabet = how.type == 'X' ? "0123456789ABCDEF" : "0123456789abcdef";
  do {
    digits += alphabet[static_cast<std::size_t>(rest % base)];
    rest /= base;
  } while (rest != 0);
  while (static_cast<int>(digits.size()) < how.precision) digits += '0';
  std::reverse(digits.begin(), digits.end());
  std::string prefix = negative ? "-" : how.plus ? "+" : how.space ? " " : "";
  if (how.alternate && base != 10) prefix += base == 8 ? "0o" : how.type == 'X' ? "0X" : "0x";
  return padded(how, prefix, digits);
}

std::string format_float(const Conversion& how, double value) {
  const bool finite = std::isfinite(value);
  const bool upper = how.type < 'a';
  std::string body;
  if (!finite) {
    body = std::isnan(value) ? (upper ? "NAN" : "nan") : (upper ? "INF" : "inf");
  } else {
    std::array<char, 1024> buffer;
    const std::string spec = std::string(how.alternate ? "%#.*" : "%.*") + how.type;
    const int precision = how.precision < 0 ? 6 : how.precision;
    // NOLINTNEXTLINE: the format is one of twelve made above
    const int size =
        std::snprintf(buffer.data(), buffer.size(), spec.c_str(), precision, std::fabs(value));
    body.assign(buffer.data(), static_cast<std::size_t>(size));
  }
  const bool negative = std::signbit(value) && !std::isnan(value);
  return padded(how, negative ? "-" : how.plus ? "+" : how.space ? " " : "", body);
}

// What `%` takes its values from: a tuple one by one, a dict by name, anything else as the one
// value.
class Source {
 public:
  explicit Source(const Value& arguments) : arguments_(arguments) {
    const Sequence* sequence = sequence_of(arguments);
    if (sequence && sequence->type == Sequence::Type::kTuple) tuple_ = sequence;
  }

  Value next() {
    if (tuple_ ? used_ == tuple_->items.size() : used_ == 1)
      type_error("not enough arguments for format string");
    ++used_;
    return tuple_ ? tuple_->items[used_ - 1] : arguments_;
  }

  Value named(Run& run, std::string_view name) {
    require_defined(arguments_);
    if (!dict_of(arguments_)) type_error("format requires a mapping");
    by_name_ = true;
    if (const Value* found = dict_of(arguments_)->find(run, name)) return *found;
    std::string message = "no argument ";
    runtime_error(message += quoted(name));
  }

  void check_all_used() const {
    // Python lets what can be subscripted pass, because it might have been meant by name.
    const Sequence* sequence = sequence_of(arguments_);
    const bool subscripted =
        dict_of(arguments_) || is<Undefined>(arguments_) || (sequence && !sequence->is_view());
    if (by_name_ || (!tuple_ && subscripted)) return;
    if (used_ < (tuple_ ? tuple_->items.size() : 1)) {
      type_error("not all arguments converted during string formatting");
    }
  }

 private:
  const Value& arguments_;
  const Sequence* tuple_ = nullptr;
  std::size_t used_ = 0;
  bool by_name_ = false;
};

// A number or `*` of a conversion.
Int read_count(std::string_view& rest, Source& source, bool& negative) {
  negative = false;
  if (rest.starts_with('*')) {
    rest.remove_prefix(1);
    Int value = require_integer(source.next());
    negative = value < 0;
    return std::min(negative ? -std::max(value, -2 * kMaxWidth) : value, 2 * kMaxWidth);
  }
  Int value = 0;
  while (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') {
    value = std::min<Int>(value * 10 + (rest[0] - '0'), 2 * kMaxWidth);
    rest.remove_prefix(1);
  }
  return value;
}

Conversion read_conversion(std::string_view& rest, Source& source) {
  Conversion how;
  for (bool flag = true; flag && !rest.empty();) {
    switch (rest[0]) {
      case '-':
        how.left = true;
        break;
      case '+':
        how.plus = true;
        break;
      case ' ':
        how.space = true;
        break;
      case '0':
        how.zero = true;
        break;
      case '#':
        how.alternate = true;
        break;
      default:
        flag = false;
    }
    if (flag) rest.remove_prefix(1);
  }
  bool negative = false;
  how.width = read_count(rest, source, negative);
  how.left |= negative;
  if (rest.starts_with('.')) {
    rest.remove_prefix(1);
    const Int precision = read_count(rest, source, negative);
    if (precision > kMaxPrecision) unsupported("a precision above 400");
    how.precision = negative ? 0 : static_cast<int>(precision);
  }
  if (how.width > kMaxWidth) unsupported("a width above a million");
  while (!rest.empty() && (rest[0] == 'h' || rest[0] == 'l' || rest[0] == 'L'))
    rest.remove_prefix(1);
  if (rest.empty()) value_error("incomplete format");
  how.type = rest[0];
  rest.remove_prefix(1);
  return how;
}

std::string_view cut(std::string_view text, int precision) {
  return precision < 0
             ? text
             : text.substr(0, character_offset(text, static_cast<std::size_t>(precision)));
}

std::string convert(Run& run, Conversion how, const Value& value, bool escape) {
  switch (how.type) {
    case 's':
    case 'r':
    case 'a': {
      if (how.type == 'a') unsupported("the conversion %a");
      std::string text = how.type == 's' ? to_text(run, value) : repr(run, value);
      const Text* markup = text_of(value);
      if (escape && !(how.type == 's' && markup && markup->markup)) text = escape_html(text);
      how.zero = false;
      return padded(how, "", cut(text, how.precision));
    }
    case 'c': {
      how.zero = false;
      if (const Text* text = text_of(value)) {
        if (count_characters(text->view()) != 1) type_error("%c requires int or char");
        return padded(how, "", text->view());
      }
      unsupported("%c of a number");
    }
    case 'd':
    case 'i':
    case 'u':
      if (const auto* real = std::get_if<double>(&value))
        return format_integer(how, truncate(*real));
      [[fallthrough]];
    case 'x':
    case 'X':
    case 'o': {
      const auto integer = integer_of(value);
      if (integer) return format_integer(how, *integer);
      require_defined(value);
      std::string message = "%";
      message.append(1, how.type).append(" format: a number is required, not ");
      type_error(message.append(type_name(value)));
    }
    case 'f':
    case 'F':
    case 'e':
    case 'E':
    case 'g':
    case 'G': {
      require_defined(value);
      const auto number = number_of(value);
      if (!number) type_error(words({"must be real number, not ", std::string(type_name(value))}));
      return format_float(how, *number);
    }
    default:
      value_error(words({"unsupported format character '", std::string(1, how.type), "'"}));
  }
}

}  // namespace

Value format_percent(Run& run, const Text& format, const Value& arguments) {
  Source source(arguments);
  std::string out;
  std::string_view rest = format.view();
  for (std::size_t percent = 0; (percent = rest.find('%')) != rest.npos;) {
    out += rest.substr(0, percent);
    rest.remove_prefix(percent + 1);
    if (rest.starts_with('%')) {
      out += '%';
      rest.remove_prefix(1);
      continue;
    }
    std::optional<Value> named;
    if (rest.starts_with('(')) {
      std::size_t end = 1;
      for (int open = 1; end < rest.size() && open > 0; ++end)
        open += rest[end] == '(' ? 1 : rest[end] == ')' ? -1 : 0;
      if (rest[end - 1] != ')' || end < 2) value_error("incomplete format key");
      named = source.named(run, rest.substr(1, end - 2));
      rest.remove_prefix(end);
    }
    const Conversion how = read_conversion(rest, source);
    const std::string converted = convert(run, how, named ? *named : source.next(), format.markup);
    run.spend(converted.size());
    out += converted;
  }
  out += rest;
  source.check_all_used();
  return run.text(std::move(out), format.markup);
}

Value format_braces(Run& run, const Text& format, const Arguments& arguments) {
  std::string out;
  std::size_t next = 0;
  bool automatic = false;
  bool numbered = false;
  const std::string_view text = format.view();
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if ((c == '{' || c == '}') && i + 1 < text.size() && text[i + 1] == c) {
      out += c;
      ++i;
      continue;
    }
    if (c == '}') value_error("Single '}' encountered in format string");
    if (c != '{') {
      out += c;
      continue;
    }
    const std::size_t end = text.find('}', i);
    if (end == text.npos) value_error("expected '}' before end of string");
    const std::string_view name = text.substr(i + 1, end - i - 1);
    if (name.find_first_of("{[.:!") != name.npos)
      unsupported(words({"str.format with ", quoted(name)}));
    const Value* value = nullptr;
    const bool is_number = !name.empty() && name.find_first_not_of("0123456789") == name.npos;
    if (name.empty() || is_number) {
      automatic |= name.empty();
      numbered |= is_number;
      if (automatic && numbered) value_error("cannot mix automatic and numbered fields");
      const std::size_t position = name.empty()      ? next++
                                   : name.size() > 6 ? 1'000'000
                                                     : std::stoul(std::string(name));
      if (position >= arguments.positional.size()) runtime_error("Replacement index out of range");
      value = &arguments.positional[position];
    } else {
      for (const auto& [key, each] : arguments.named) {
        if (key == name) value = &each;
      }
      if (!value) runtime_error(words({"str.format has no argument ", quoted(name)}));
    }
    const Text* given = text_of(*value);
    const std::string plain = to_text(run, *value);
    run.spend(plain.size());
    out += format.markup && !(given && given->markup) ? escape_html(plain) : plain;
    i = end;
  }
  return run.text(std::move(out), format.markup);
}

}  // namespace moiety::jinja
