// Methods of lists, tuples, ranges and dicts; attributes of numbers; what binds a method to its
// value.

#include "model/jinja_methods.h"

#include <algorithm>
#include <array>

#include "model/jinja_operators.h"

namespace moiety::jinja {
namespace {

class BoundMethod final : public Object {
 public:
  BoundMethod(Value self, std::string name, Method method)
      : self_(std::move(self)), name_(std::move(name)), method_(method) {}
  std::string_view type_name() const override { return "builtin_function_or_method"; }
  bool callable() const override { return true; }
  Value call(Run& run, Arguments arguments) override {
    if (!method_)
      unsupported(words({"the method '", name_, "' of ", std::string(jinja::type_name(self_))}));
    return method_(run, self_, arguments);
  }
  int depth() const override { return depth_of(self_) + 1; }

 private:
  Value self_;
  std::string name_;
  Method method_;  // nullptr: Python has it, this engine has not
};

template <std::size_t N>
bool is_one_of(std::string_view name, const std::array<std::string_view, N>& names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Methods that change the value: Jinja's immutable sandbox makes them undefined.
constexpr std::array<std::string_view, 8> kListChanges = {"append", "clear",  "extend",  "insert",
                                                          "pop",    "remove", "reverse", "sort"};
constexpr std::array<std::string_view, 5> kDictChanges = {"clear", "pop", "popitem", "setdefault",
                                                          "update"};

// What Python's types have and this engine has not.
constexpr std::array<std::string_view, 6> kOtherString = {"casefold",  "encode",    "expandtabs",
                                                          "isnumeric", "maketrans", "translate"};
constexpr std::array<std::string_view, 7> kOtherInteger = {
    "as_integer_ratio", "bit_count",  "bit_length", "conjugate",
    "from_bytes",       "is_integer", "to_bytes"};
constexpr std::array<std::string_view, 5> kOtherFloat = {"as_integer_ratio", "conjugate", "fromhex",
                                                         "hex", "is_integer"};

Value dict_get(Run& run, const Value& self, const Arguments& arguments) {
  if (!arguments.named.empty()) type_error("get() takes no keyword arguments");
  const Bound bound("get", {"key", "default"}, arguments, 1);
  hash(run, *bound[0]);
  const Value* found = dict_of(self)->find(run, *bound[0]);
  return found ? *found : bound.at(1, None{});
}

void no_arguments(std::string_view name, const Arguments& arguments) {
  const Bound bound(name, {}, arguments);
}

Value dict_keys(Run& run, const Value& self, const Arguments& arguments) {
  no_arguments("keys", arguments);
  std::vector<Value> items;
  for (const auto& entry : dict_of(self)->entries) items.push_back(entry.first);
  return run.sequence(Sequence::Type::kKeys, std::move(items));
}

Value dict_values(Run& run, const Value& self, const Arguments& arguments) {
  no_arguments("values", arguments);
  std::vector<Value> items;
  for (const auto& entry : dict_of(self)->entries) items.push_back(entry.second);
  return run.sequence(Sequence::Type::kValues, std::move(items));
}

Value dict_items(Run& run, const Value& self, const Arguments& arguments) {
  no_arguments("items", arguments);
  std::vector<Value> items;
  for (const auto& entry : dict_of(self)->entries)
    items.push_back(run.tuple({entry.first, entry.second}));
  return run.sequence(Sequence::Type::kItems, std::move(items));
}

Value copy_of(Run&, const Value& self, const Arguments& arguments) {
  no_arguments("copy", arguments);
  return self;  // values never change
}

Value sequence_count(Run& run, const Value& self, const Arguments& arguments) {
  const Bound bound("count", {"value"}, arguments, 1);
  const auto& items = sequence_of(self)->items;
  return Int{std::count_if(items.begin(), items.end(),
                           [&](const Value& item) { return equal(run, item, *bound[0]); })};
}

Value sequence_index(Run& run, const Value& self, const Arguments& arguments) {
  const Bound bound("index", {"value", "start", "stop"}, arguments, 1);
  const auto& items = sequence_of(self)->items;
  const SliceBounds within = slice_bounds(static_cast<Int>(items.size()), bound.at(1, None{}),
                                          bound.at(2, None{}), None{});
  for (Int i = within.start; i < within.stop; ++i) {
    if (equal(run, items[static_cast<std::size_t>(i)], *bound[0])) return i;
  }
  value_error("value is not in the list");
}

struct Entry {
  std::string_view name;
  Method method;
};

constexpr std::array<Entry, 5> kDictMethods = {{{"get", dict_get},
                                                {"keys", dict_keys},
                                                {"values", dict_values},
                                                {"items", dict_items},
                                                {"copy", copy_of}}};
constexpr std::array<Entry, 2> kSequenceMethods = {
    {{"count", sequence_count}, {"index", sequence_index}}};

// Attributes of numbers that are numbers themselves.
std::optional<Value> number_attribute(const Value& value, std::string_view name) {
  const auto integer = integer_of(value);
  if (name == "real") return integer ? Value(*integer) : value;
  if (name == "imag") return integer ? Value(Int{0}) : Value(0.0);
  if (integer && name == "numerator") return *integer;
  if (integer && name == "denominator") return Int{1};
  return std::nullopt;
}

bool is_known_elsewhere(const Value& value, std::string_view name) {
  if (is<Text>(value)) return is_one_of(name, kOtherString);
  if (is<double>(value)) return is_one_of(name, kOtherFloat);
  if (integer_of(value)) return is_one_of(name, kOtherInteger);
  if (is<DictPtr>(value)) return name == "fromkeys";
  const Sequence* sequence = sequence_of(value);
  return sequence && sequence->is_view() && (name == "isdisjoint" || name == "mapping");
}

}  // namespace

Method find_container_method(const Value& value, std::string_view name) {
  if (is<DictPtr>(value)) {
    for (const Entry& entry : kDictMethods) {
      if (entry.name == name) return entry.method;
    }
  }
  const Sequence* sequence = sequence_of(value);
  if (!sequence || sequence->is_view()) return nullptr;
  if (sequence->type == Sequence::Type::kList && name == "copy") return copy_of;
  for (const Entry& entry : kSequenceMethods) {
    if (entry.name == name) return entry.method;
  }
  return nullptr;
}

std::optional<Value> builtin_attribute(Run& run, const Value& value, std::string_view name) {
  run.step();
  const Sequence* sequence = sequence_of(value);
  const bool is_list = sequence && sequence->type == Sequence::Type::kList;
  if ((is_list && is_one_of(name, kListChanges)) ||
      (is<DictPtr>(value) && is_one_of(name, kDictChanges))) {
    std::string reason = "'";
    reason.append(name).append("' would change the ").append(type_name(value));
    return undefined(reason.append(", which templates may not"));
  }
  if (sequence && sequence->type == Sequence::Type::kRange) {
    if (name == "start") return sequence->start;
    if (name == "stop") return sequence->stop;
    if (name == "step") return sequence->step;
  }
  if (auto number = number_attribute(value, name); number && number_of(value)) return number;
  const Method method =
      is<Text>(value) ? find_string_method(name) : find_container_method(value, name);
  if (!method && !is_known_elsewhere(value, name)) return std::nullopt;
  return std::make_shared<BoundMethod>(value, std::string(name), method);
}

}  // namespace moiety::jinja
