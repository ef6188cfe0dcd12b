// Numbers from text and from each other.

#include <charconv>
#include <cmath>

#include "model/jinja_operators.h"
#include "model/jinja_text.h"

namespace moiety::jinja {

Int truncate(double value) {
  if (std::isnan(value)) value_error("cannot convert float NaN to integer");
  if (std::isinf(value)) runtime_error("cannot convert float infinity to integer");
  if (std::fabs(value) >= 0x1p127) runtime_error("an integer beyond 127 bits");
  return static_cast<Int>(value);
}

namespace {

// Takes out single underscores between digits; false where one stands elsewhere.
bool remove_underscores(std::string& digits) {
  if (digits.starts_with('_') || digits.ends_with('_') || digits.find("__") != digits.npos)
    return false;
  std::erase(digits, '_');
  return true;
}

}  // namespace

std::optional<Int> parse_integer(std::string_view text, int base) {
  if (base != 0 && (base < 2 || base > 36)) value_error("int() base must be >= 2 and <= 36, or 0");
  text = strip(text, true, true);
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  bool prefixed = false;
  if (text.size() > 1 && text[0] == '0') {
    const char letter = static_cast<char>(text[1] | 0x20);
    const int named = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 0;
    prefixed = named != 0 && (base == 0 || base == named);
    if (prefixed) {
      base = named;
      text.remove_prefix(2);
      if (text.starts_with('_')) text.remove_prefix(1);
    }
  }
  std::string digits(text);
  if (digits.empty() || !remove_underscores(digits)) return std::nullopt;
  if (base == 0) {
    if (digits.size() > 1 && digits[0] == '0' && digits.find_first_not_of('0') != digits.npos)
      return std::nullopt;
    base = 10;
  }
  Int value = 0;
  for (char c : digits) {
    const int lower = c | 0x20;
    const int digit = c >= '0' && c <= '9'           ? c - '0'
                      : lower >= 'a' && lower <= 'z' ? lower - 'a' + 10
                                                     : 99;
    if (digit >= base) return std::nullopt;
    if (__builtin_mul_overflow(value, Int{base}, &value) ||
        __builtin_add_overflow(value, Int{digit}, &value)) {
      runtime_error("an integer beyond 127 bits");
    }
  }
  return negative ? -value : value;
}

std::optional<double> parse_float(std::string_view text) {
  std::string lowered = lower(strip(text, true, true));
  const bool negative = lowered.starts_with('-');
  if (negative || lowered.starts_with('+')) lowered.erase(0, 1);
  if (lowered == "inf" || lowered == "infinity") return negative ? -HUGE_VAL : HUGE_VAL;
  if (lowered == "nan") return std::nan("");
  for (std::size_t i = lowered.find('_'); i != lowered.npos; i = lowered.find('_', i + 1)) {
    const auto digit = [&](std::size_t at) {
      return at < lowered.size() && lowered[at] >= '0' && lowered[at] <= '9';
    };
    if (i == 0 || !digit(i - 1) || !digit(i + 1)) return std::nullopt;
  }
  std::erase(lowered, '_');
  if (lowered.empty() || (lowered[0] != '.' && (lowered[0] < '0' || lowered[0] > '9')))
    return std::nullopt;
  double value = 0;
  const auto end = std::from_chars(lowered.data(), lowered.data() + lowered.size(), value);
  if (end.ptr != lowered.data() + lowered.size()) return std::nullopt;
  if (end.ec == std::errc::result_out_of_range) {  // from_chars does not say which way
    const std::size_t exponent = lowered.find('e');
    value = exponent != lowered.npos && lowered.substr(exponent).starts_with("e-") ? 0.0 : HUGE_VAL;
  } else if (end.ec != std::errc()) {
    return std::nullopt;
  }
  return negative ? -value : value;
}

}  // namespace moiety::jinja
