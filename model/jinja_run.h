#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/jinja_value.h"

namespace moiety::jinja {

/// Bounds of one rendering. Real conversations stay far below; a hostile template ends with an
/// error in about a second.
struct Limits {
  std::uint64_t steps = 20'000'000;
  std::uint64_t made_bytes = 1u << 29;   ///< of all strings and lists made, together
  std::uint64_t text_bytes = 64u << 20;  ///< of one string, and of the output
};
inline constexpr int kMaxEvalDepth = 500;      ///< nested expressions, statements and macro calls
inline constexpr int kMaxParseDepth = 240;     ///< nested parentheses and blocks
inline constexpr int kMaxValueDepth = 150;     ///< nested lists and dicts
inline constexpr std::size_t kTextBytes = 64;  ///< what a string takes besides its bytes
inline constexpr int kMaxRange = 100'000;      ///< items of range(), as in Jinja's sandbox

/// `namespace(...)`: the only value that templates can change.
class Namespace final : public Object {
 public:
  std::string_view type_name() const override { return "Namespace"; }
  std::optional<Value> attribute(Run& run, std::string_view name) override;
  std::string repr(Run& run) const override;
  void set(std::string_view name, Value value);
  std::vector<std::pair<std::string, Value>> attributes;
};

/// One rendering: counts its work against the bounds and makes its values. Used by one thread.
class Run {
 public:
  explicit Run(const Limits& limits = {}) : limits_(limits) {}
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;
  /// Namespaces may refer to each other in circles; they are emptied here.
  ~Run();

  /// One piece of work. Fails beyond Limits::steps.
  void step() {
    if (++steps_ > limits_.steps) [[unlikely]]
      too_much_work();
  }
  /// Memory about to be made, or just made. Fails beyond Limits::made_bytes.
  void spend(std::size_t bytes) {
    made_bytes_ += bytes;
    if (made_bytes_ > limits_.made_bytes || bytes > limits_.made_bytes) [[unlikely]]
      too_much_memory();
  }
  /// The same for something repeated; does not overflow.
  void spend(Int bytes_each, Int times);

  Value text(std::string bytes, bool markup = false);
  Value list(std::vector<Value> items) { return sequence(Sequence::Type::kList, std::move(items)); }
  Value tuple(std::vector<Value> items) {
    return sequence(Sequence::Type::kTuple, std::move(items));
  }
  Value sequence(Sequence::Type type, std::vector<Value> items);
  /// Later values of a key win and keep the first one's place, as in Python.
  Value dict(std::vector<std::pair<Value, Value>> entries);
  std::shared_ptr<Namespace> make_namespace();
  /// What iterating over `make`'s items gives; make(items) may fail half way.
  template <class Make>
  Value iterator(std::string_view type_name, Make make) {
    auto made = std::make_shared<Iterator>();
    made->type_name = type_name;
    try {
      make(made->items);
    } catch (Failure& failure) {
      if (failure.kind == Failure::Kind::kLimit) throw;
      made->failure = std::move(failure);
    }
    made->depth = account(made->items);
    return made;
  }

  const Limits& limits() const { return limits_; }

  int line = 0;   ///< where the template is, for messages
  int depth = 0;  ///< of evaluation

 private:
  /// Spends what a container of `items` takes and returns its depth. Fails beyond kMaxValueDepth.
  int account(const std::vector<Value>& items);
  [[noreturn]] void too_much_work();
  [[noreturn]] void too_much_memory();

  const Limits limits_;
  std::uint64_t steps_ = 0;
  std::uint64_t made_bytes_ = 0;
  std::vector<std::shared_ptr<Namespace>> namespaces_;
};

/// One level of nested evaluation. Fails beyond kMaxEvalDepth.
class Nested {
 public:
  explicit Nested(Run& run) : run_(run) {
    run_.step();
    if (++run_.depth > kMaxEvalDepth) [[unlikely]] {
      --run_.depth;
      throw Failure{Failure::Kind::kLimit, "nested too deeply (endless recursion of a macro?)"};
    }
  }
  Nested(const Nested&) = delete;
  Nested& operator=(const Nested&) = delete;
  ~Nested() { --run_.depth; }

 private:
  Run& run_;
};

/// Goes through a value as Python's iter() does: characters, items, keys. Fails on what cannot be
/// iterated.
class Cursor {
 public:
  Cursor(Run& run, Value source);
  /// False at the end.
  bool next(Value& out);
  /// Items from start to end, where Python's len() knows it.
  std::optional<std::size_t> length() const;

 private:
  Run& run_;
  Value source_;
  std::size_t position_ = 0;
};

bool is_iterable(const Value& value);
std::vector<Value> collect(Run& run, const Value& value);
/// Python's len(); fails on what has none.
std::size_t length(Run& run, const Value& value);
std::optional<std::size_t> try_length(Run& run, const Value& value);

/// Calls any value; fails on what cannot be called.
Value call(Run& run, const Value& callee, Arguments arguments);

/// Jinja's `value.name` (attribute first, then item) and `value[key]` (item first, then attribute).
Value get_attribute(Run& run, const Value& value, std::string_view name);
Value get_item(Run& run, const Value& value, const Value& key);
Value get_slice(
    Run& run, const Value& value, const Value& start, const Value& stop, const Value& step);
/// The attribute that Python knows for this type of value; nullopt: none. Undefined where the
/// sandbox hides it.
std::optional<Value> python_attribute(Run& run, const Value& value, std::string_view name);

/// The bounds [start, stop) and step of Python's slice for a length; Unset or None: not given.
struct SliceBounds {
  Int start, stop, step;
};
SliceBounds slice_bounds(Int length, const Value& start, const Value& stop, const Value& step);

/// An index or count that a caller gave; fails on what is no integer.
Int require_integer(const Value& value);

/// Arguments by Python's rules: positional ones first, then by name. Fails on unknown, repeated,
/// missing ones.
class Bound {
 public:
  /// The first `required` of `names` must be given.
  Bound(std::string_view function,
        const std::vector<std::string_view>& names,
        const Arguments& arguments,
        std::size_t required = 0);
  /// nullptr: not given.
  const Value* operator[](std::size_t i) const { return values_[i]; }
  const Value& at(std::size_t i, const Value& otherwise) const {
    return values_[i] ? *values_[i] : otherwise;
  }

 private:
  std::vector<const Value*> values_;
};

}  // namespace moiety::jinja
