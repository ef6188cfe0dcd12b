// Filters of numbers.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "model/jinja_filters.h"
#include "model/jinja_operators.h"
#include "model/jinja_text.h"

namespace moiety::jinja {
namespace {

// Python's float(); nullopt where it raises TypeError or ValueError.
std::optional<double> to_float(const Value& value) {
  require_defined(value);
  if (const Text* text = text_of(value)) return parse_float(text->view());
  return number_of(value);
}

// Python's int(); nullopt where it raises TypeError or ValueError.
std::optional<Int> to_integer(const Value& value, int base) {
  require_defined(value);
  if (const Text* text = text_of(value)) return parse_integer(text->view(), base);
  if (const auto integer = integer_of(value)) return integer;
  const auto* real = std::get_if<double>(&value);
  if (!real || std::isnan(*real)) return std::nullopt;
  return truncate(*real);
}

// Python's round(): halves to even, of the exact binary value.
double round_float(double value, Int digits) {
  if (!std::isfinite(value) || digits > 323) return value;
  if (digits < -308) return std::copysign(0.0, value);
  if (digits >= 0) {
    char buffer[1024];
    std::snprintf(buffer, sizeof buffer, "%.*f", static_cast<int>(digits), value);
    return std::strtod(buffer, nullptr);
  }
  const double unit = std::pow(10.0, static_cast<double>(-digits));
  return std::nearbyint(value / unit) * unit;
}

Int round_integer(Int value, Int digits) {
  if (digits >= 0) return value;
  if (digits < -38) return 0;
  Int unit = 1;
  for (Int i = digits; i < 0; ++i) unit *= 10;
  Int rest = value % unit;
  if (rest < 0) rest += unit;
  const Int down = value - rest;
  const bool up = rest > unit - rest || (rest == unit - rest && (down / unit) % 2 != 0);
  Int result = down;
  if (up && __builtin_add_overflow(down, unit, &result))
    runtime_error("an integer beyond 127 bits");
  return result;
}

}  // namespace

Value filter_abs(Run&, const Value& value, const Arguments& arguments) {
  const Bound bound("abs", {}, arguments);
  if (const auto integer = integer_of(value))
    return *integer < 0 ? negate(*integer) : Value(*integer);
  if (const auto* real = std::get_if<double>(&value)) return std::fabs(*real);
  require_defined(value);
  std::string message = "bad operand type for abs(): '";
  type_error(message.append(type_name(value)).append("'"));
}

Value filter_float(Run&, const Value& value, const Arguments& arguments) {
  const Bound bound("float", {"default"}, arguments);
  if (const auto number = to_float(value)) return *number;
  return bound.at(0, 0.0);
}

Value filter_int(Run&, const Value& value, const Arguments& arguments) {
  const Bound bound("int", {"default", "base"}, arguments);
  const Int base = bound[1] ? require_integer(*bound[1]) : 10;
  const bool valid = base == 0 || (base >= 2 && base <= 36);
  const bool is_text_value = is<Text>(value);
  if (valid || !is_text_value) {
    if (const auto integer = to_integer(value, valid ? static_cast<int>(base) : 10))
      return *integer;
  }
  // "42.23" is 42.
  const auto number = is_text_value ? to_float(value) : std::nullopt;
  if (number && std::isfinite(*number)) return truncate(*number);
  return bound.at(0, Int{0});
}

Value filter_round(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("round", {"precision", "method"}, arguments);
  const Text* method = bound[1] ? text_of(*bound[1]) : nullptr;
  const std::string_view how = method ? method->view() : bound[1] ? "" : "common";
  if (how != "common" && how != "ceil" && how != "floor")
    runtime_error("method must be common, ceil or floor");
  const Value precision = bound.at(0, Int{0});
  require_defined(value);
  if (!number_of(value))
    type_error(words({"round needs a number, not ", std::string(type_name(value))}));
  if (how == "common") {
    if (is<None>(precision)) {
      const auto* real = std::get_if<double>(&value);
      return real ? Value(truncate(round_float(*real, 0))) : Value(*integer_of(value));
    }
    const Int digits = require_integer(precision);
    if (const auto integer = integer_of(value)) return round_integer(*integer, digits);
    return round_float(*std::get_if<double>(&value), digits);
  }
  const Value scale = apply(run, BinaryOperator::kPower, Int{10}, precision);
  const Value scaled = apply(run, BinaryOperator::kMultiply, value, scale);
  const double number = *number_of(scaled);
  const Value whole = integer_of(scaled)
                          ? scaled
                          : Value(truncate(how == "ceil" ? std::ceil(number) : std::floor(number)));
  return apply(run, BinaryOperator::kDivide, whole, scale);
}

Value filter_sum(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("sum", {"attribute", "start"}, arguments);
  Value sum = bound.at(1, Int{0});
  if (is<Text>(sum)) type_error("sum() cannot add strings: use join");
  Cursor cursor(run, value);
  for (Value item; cursor.next(item);) {
    sum = apply(run, BinaryOperator::kAdd, sum, at_path(run, item, bound.at(0, Unset{})));
  }
  return sum;
}

}  // namespace moiety::jinja
