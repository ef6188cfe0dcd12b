#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "common/result.h"

/// The engine behind ChatTemplate: Jinja2's language with Python's values. Private to model/.
namespace moiety::jinja {

/// Why a template could not be parsed or rendered. The engine throws it inside; ChatTemplate
/// catches it and makes it an Error, so it never crosses an interface. Python's kind of exception
/// decides what a filter may catch.
struct Failure {
  enum class Kind { kType, kValue, kOther, kUndefined, kRefused, kLimit };
  Kind kind = Kind::kOther;
  std::string message;
};

/// The parts of a message, one after the other.
std::string words(std::initializer_list<std::string_view> parts);

[[noreturn]] void type_error(std::string message);
[[noreturn]] void value_error(std::string message);
[[noreturn]] void runtime_error(std::string message);
/// Something that Jinja knows and this engine does not.
[[noreturn]] void unsupported(std::string what);

using Int = __int128;

struct Sequence;
struct Dict;
struct Iterator;
class Object;

struct Unset {};  ///< a variable that has no value yet; never seen by templates
struct None {};

/// Jinja's default Undefined: empty when printed, an error in most operations.
struct Undefined {
  std::shared_ptr<const std::string> reason;
};

/// UTF-8. `markup` is what `safe` and `escape` return: adding to it escapes the other side.
struct Text {
  std::shared_ptr<const std::string> bytes;
  bool markup = false;
  std::string_view view() const { return *bytes; }
};

using SequencePtr = std::shared_ptr<const Sequence>;
using DictPtr = std::shared_ptr<const Dict>;
using IteratorPtr = std::shared_ptr<Iterator>;
using ObjectPtr = std::shared_ptr<Object>;

/// A Python value. Lists and dicts are immutable, as in Jinja's immutable sandbox; only namespaces,
/// iterators and loops change.
using Value = std::variant<Unset,
                           Undefined,
                           None,
                           bool,
                           Int,
                           double,
                           Text,
                           SequencePtr,
                           DictPtr,
                           IteratorPtr,
                           ObjectPtr>;

/// A list and what else is indexed or viewed like one.
struct Sequence {
  enum class Type { kList, kTuple, kRange, kKeys, kValues, kItems };
  Type type = Type::kList;
  std::vector<Value> items;
  int depth = 1;                      ///< levels of containers, this one included
  Int start = 0, stop = 0, step = 1;  ///< of a range
  bool is_view() const { return type >= Type::kKeys; }
};

class Run;

/// Keys in the order of insertion. Keys are hashable values; 1, 1.0 and true are the same key.
struct Dict {
  std::vector<std::pair<Value, Value>> entries;
  std::unordered_multimap<std::size_t, std::size_t> by_hash;  ///< only of larger dicts
  int depth = 1;

  const Value* find(Run& run, const Value& key) const;
  /// The value of a key that is a string.
  const Value* find(Run& run, std::string_view key) const;
};

/// What Python's generators are: it can be gone through once. The items were computed ahead; a
/// failure on the way comes when the item would have been asked for.
struct Iterator {
  std::vector<Value> items;
  std::size_t next = 0;
  int depth = 1;
  std::string_view type_name = "generator";
  std::optional<Failure> failure;
};

/// Arguments of a call, already evaluated.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

/// A value with behaviour: macros, functions, bound methods, namespaces, loops, cyclers, joiners.
class Object {
 public:
  virtual ~Object() = default;
  virtual std::string_view type_name() const = 0;
  /// nullopt: there is no such attribute.
  virtual std::optional<Value> attribute(Run& run, std::string_view name);
  virtual bool callable() const { return false; }
  virtual Value call(Run& run, Arguments arguments);
  /// What printing shows; refused where Python prints an address.
  virtual std::string repr(Run& run) const;
  /// Python's len(); nullopt: it has none.
  virtual std::optional<std::size_t> length(Run&) { return std::nullopt; }
  /// Levels of containers that it keeps alive.
  virtual int depth() const { return 0; }
};

/// Python's name of a value's type, for messages.
std::string_view type_name(const Value& value);

template <class T>
bool is(const Value& value) {
  return std::holds_alternative<T>(value);
}
inline const Text* text_of(const Value& value) { return std::get_if<Text>(&value); }
inline const Sequence* sequence_of(const Value& value) {
  const auto* pointer = std::get_if<SequencePtr>(&value);
  return pointer ? pointer->get() : nullptr;
}
inline const Dict* dict_of(const Value& value) {
  const auto* pointer = std::get_if<DictPtr>(&value);
  return pointer ? pointer->get() : nullptr;
}
template <class T>
T* object_of(const Value& value) {
  const auto* pointer = std::get_if<ObjectPtr>(&value);
  return pointer ? dynamic_cast<T*>(pointer->get()) : nullptr;
}

/// An integer or a bool, which Python counts as one.
std::optional<Int> integer_of(const Value& value);
/// Any number as a double.
std::optional<double> number_of(const Value& value);

Value undefined(std::string reason);
[[noreturn]] void undefined_error(const Undefined& value);
/// Fails if the value is undefined, as most operations on it do.
void require_defined(const Value& value);

/// Python's bool().
bool truthy(Run& run, const Value& value);

int depth_of(const Value& value);

}  // namespace moiety::jinja
