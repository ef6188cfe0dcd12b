// The table of tests: what may follow `is`.

#include <algorithm>
#include <array>
#include <cmath>

#include "model/jinja_filters.h"
#include "model/jinja_methods.h"
#include "model/jinja_operators.h"

namespace moiety::jinja {
namespace {

void take_no_arguments(const Arguments& arguments) { const Bound bound("test", {}, arguments); }

// A test that only looks at the value.
template <bool (*Look)(Run&, const Value&)>
bool look(Run& run, const Value& value, const Arguments& arguments) {
  take_no_arguments(arguments);
  return Look(run, value);
}

template <Comparison Op>
bool compared(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("test", {"b"}, arguments, 1);
  return compare(run, Op, value, *bound[0]);
}

bool in(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("in", {"seq"}, arguments, 1);
  return contains(run, *bound[0], value);
}

bool divisible_by(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("divisibleby", {"num"}, arguments, 1);
  return equal(run, apply(run, BinaryOperator::kModulo, value, *bound[0]), Int{0});
}

bool odd(Run& run, const Value& value) {
  return equal(run, apply(run, BinaryOperator::kModulo, value, Int{2}), Int{1});
}

bool even(Run& run, const Value& value) {
  return equal(run, apply(run, BinaryOperator::kModulo, value, Int{2}), Int{0});
}

template <class T>
bool holds(Run&, const Value& value) {
  return is<T>(value);
}

bool defined(Run&, const Value& value) { return !is<Undefined>(value); }
bool number(Run&, const Value& value) { return number_of(value).has_value(); }
bool iterable(Run&, const Value& value) { return is_iterable(value); }

bool is_true(Run&, const Value& value) {
  const auto* boolean = std::get_if<bool>(&value);
  return boolean && *boolean;
}

bool is_false(Run&, const Value& value) {
  const auto* boolean = std::get_if<bool>(&value);
  return boolean && !*boolean;
}

bool sequence(Run&, const Value& value) {
  const Sequence* found = sequence_of(value);
  return (found && !found->is_view()) || is<Text>(value) || is<DictPtr>(value) ||
         is<Undefined>(value);
}

bool callable(Run&, const Value& value) {
  const auto* object = std::get_if<ObjectPtr>(&value);
  return is<Undefined>(value) || (object && (*object)->callable());
}

bool escaped(Run&, const Value& value) {
  const Text* text = text_of(value);
  return text && text->markup;
}

bool text_method(Run& run, const Value& value, std::string_view name) {
  return truthy(run, find_string_method(name)(run, soft_text(run, value), {}));
}

bool lower_case(Run& run, const Value& value) { return text_method(run, value, "islower"); }
bool upper_case(Run& run, const Value& value) { return text_method(run, value, "isupper"); }

bool filter_exists(Run& run, const Value& value) {
  hash(run, value);
  const Text* name = text_of(value);
  return name && is_jinja_filter(name->view());
}

bool test_exists(Run& run, const Value& value) {
  hash(run, value);
  const Text* name = text_of(value);
  return name && find_test(name->view());
}

// Python's `is`. Small integers are one object each; other equal numbers may or may not be.
bool same_as(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("sameas", {"other"}, arguments, 1);
  const Value& other = *bound[0];
  if (value.index() != other.index()) return false;
  if (const Text* text = text_of(value)) return text->bytes == text_of(other)->bytes;
  if (const Sequence* found = sequence_of(value)) return found == sequence_of(other);
  if (const Dict* dict = dict_of(value)) return dict == dict_of(other);
  if (is<double>(value)) unsupported("'sameas' of floats");
  return equal(run, value, other);
}

struct Entry {
  std::string_view name;
  Test test;
};

constexpr std::array<Entry, 39> kTests = {{
    {"!=", compared<Comparison::kNotEqual>},
    {"<", compared<Comparison::kLess>},
    {"<=", compared<Comparison::kLessEqual>},
    {"==", compared<Comparison::kEqual>},
    {">", compared<Comparison::kGreater>},
    {">=", compared<Comparison::kGreaterEqual>},
    {"boolean", look<holds<bool>>},
    {"callable", look<callable>},
    {"defined", look<defined>},
    {"divisibleby", divisible_by},
    {"eq", compared<Comparison::kEqual>},
    {"equalto", compared<Comparison::kEqual>},
    {"escaped", look<escaped>},
    {"even", look<even>},
    {"false", look<is_false>},
    {"filter", look<filter_exists>},
    {"float", look<holds<double>>},
    {"ge", compared<Comparison::kGreaterEqual>},
    {"greaterthan", compared<Comparison::kGreater>},
    {"gt", compared<Comparison::kGreater>},
    {"in", in},
    {"integer", look<holds<Int>>},
    {"iterable", look<iterable>},
    {"le", compared<Comparison::kLessEqual>},
    {"lessthan", compared<Comparison::kLess>},
    {"lower", look<lower_case>},
    {"lt", compared<Comparison::kLess>},
    {"mapping", look<holds<DictPtr>>},
    {"ne", compared<Comparison::kNotEqual>},
    {"none", look<holds<None>>},
    {"number", look<number>},
    {"odd", look<odd>},
    {"sameas", same_as},
    {"sequence", look<sequence>},
    {"string", look<holds<Text>>},
    {"test", look<test_exists>},
    {"true", look<is_true>},
    {"undefined", look<holds<Undefined>>},
    {"upper", look<upper_case>},
}};

}  // namespace

Test find_test(std::string_view name) {
  for (const Entry& entry : kTests) {
    if (entry.name == name) return entry.test;
  }
  return nullptr;
}

}  // namespace moiety::jinja
