#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "model/jinja_run.h"
#include "model/jinja_value.h"

/// Python's operators, and its ways to spell values.
namespace moiety::jinja {

enum class BinaryOperator { kAdd, kSubtract, kMultiply, kDivide, kFloorDivide, kModulo, kPower };
enum class Comparison {
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn
};

Value apply(Run& run, BinaryOperator op, const Value& left, const Value& right);
Value negate(const Value& value);
Value unary_plus(const Value& value);
bool compare(Run& run, Comparison op, const Value& left, const Value& right);

bool equal(Run& run, const Value& left, const Value& right);
bool less(Run& run, const Value& left, const Value& right);
bool contains(Run& run, const Value& container, const Value& item);

/// Equal values have equal hashes. Fails on lists and dicts, which are not hashable.
std::size_t hash(Run& run, const Value& value);
std::size_t hash_text(std::string_view text);

/// `format % arguments` of strings: %s %r %d %i %u %x %X %o %c %f %F %e %E %g %G %%, with flags,
/// width, precision.
Value format_percent(Run& run, const Text& format, const Value& arguments);
/// str.format: {} {0} {name} without attributes and specifications.
Value format_braces(Run& run, const Text& format, const Arguments& arguments);

/// str.split and str.rsplit, at a separator or at white space, at most `most` times;
/// str.splitlines.
using Parts = std::vector<std::string_view>;
Parts split_at(
    Run& run, std::string_view text, std::string_view separator, std::size_t most, bool right);
Parts split_at_space(Run& run, std::string_view text, std::size_t most, bool right);
Parts split_lines(Run& run, std::string_view text, bool keep_ends);

/// str.replace; most < 0: all.
std::string replaced(
    Run& run, std::string_view text, std::string_view old, std::string_view with, Int most);

enum class Align { kLeft, kRight, kCenter };
/// str.ljust, str.rjust and str.center; `fill` is one character.
std::string justified(
    Run& run, std::string_view text, Int width, std::string_view fill, Align align);

/// Python's str() and repr().
std::string to_text(Run& run, const Value& value);
std::string repr(Run& run, const Value& value);
/// str(), but markup stays markup.
Text soft_text(Run& run, const Value& value);

struct JsonStyle {
  bool ascii = false;
  bool sort_keys = false;
  bool indented = false;
  std::string indent;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
/// Python's json.dumps.
std::string to_json(Run& run, const Value& value, const JsonStyle& style);

/// Python's int(text, base) and float(text); nullopt: not a number. Fails beyond 127 bits.
std::optional<Int> parse_integer(std::string_view text, int base);
std::optional<double> parse_float(std::string_view text);
/// Python's int(float); fails on infinities, NaN and beyond 127 bits.
Int truncate(double value);

}  // namespace moiety::jinja
