#include "model/jinja_value.h"

#include <cmath>

#include "model/jinja_operators.h"
#include "model/jinja_run.h"

namespace moiety::jinja {

std::string words(std::initializer_list<std::string_view> parts) {
  std::string out;
  for (std::string_view part : parts) out += part;
  return out;
}

void type_error(std::string message) { throw Failure{Failure::Kind::kType, std::move(message)}; }
void value_error(std::string message) { throw Failure{Failure::Kind::kValue, std::move(message)}; }
void runtime_error(std::string message) {
  throw Failure{Failure::Kind::kOther, std::move(message)};
}
void unsupported(std::string what) {
  throw Failure{Failure::Kind::kRefused, what.append(" is not supported in chat templates here")};
}

std::optional<Value> Object::attribute(Run&, std::string_view) { return std::nullopt; }

Value Object::call(Run&, Arguments) {
  std::string message = "'";
  type_error(message.append(type_name()).append("' object is not callable"));
}

std::string Object::repr(Run&) const {
  std::string what = "printing a ";
  unsupported(what.append(type_name()));
}

namespace {

struct TypeName {
  std::string_view operator()(const Unset&) const { return "missing"; }
  std::string_view operator()(const Undefined&) const { return "Undefined"; }
  std::string_view operator()(const None&) const { return "NoneType"; }
  std::string_view operator()(bool) const { return "bool"; }
  std::string_view operator()(Int) const { return "int"; }
  std::string_view operator()(double) const { return "float"; }
  std::string_view operator()(const Text& text) const { return text.markup ? "Markup" : "str"; }
  std::string_view operator()(const DictPtr&) const { return "dict"; }
  std::string_view operator()(const IteratorPtr& iterator) const { return iterator->type_name; }
  std::string_view operator()(const ObjectPtr& object) const { return object->type_name(); }
  std::string_view operator()(const SequencePtr& sequence) const {
    switch (sequence->type) {
      case Sequence::Type::kList:
        return "list";
      case Sequence::Type::kTuple:
        return "tuple";
      case Sequence::Type::kRange:
        return "range";
      case Sequence::Type::kKeys:
        return "dict_keys";
      case Sequence::Type::kValues:
        return "dict_values";
      case Sequence::Type::kItems:
        return "dict_items";
    }
    return "list";
  }
};

}  // namespace

std::string_view type_name(const Value& value) { return std::visit(TypeName{}, value); }

std::optional<Int> integer_of(const Value& value) {
  if (const auto* integer = std::get_if<Int>(&value)) return *integer;
  if (const auto* boolean = std::get_if<bool>(&value)) return Int{*boolean ? 1 : 0};
  return std::nullopt;
}

std::optional<double> number_of(const Value& value) {
  if (const auto* real = std::get_if<double>(&value)) return *real;
  if (const auto integer = integer_of(value)) return static_cast<double>(*integer);
  return std::nullopt;
}

Value undefined(std::string reason) {
  return Undefined{std::make_shared<const std::string>(std::move(reason))};
}

void undefined_error(const Undefined& value) {
  throw Failure{Failure::Kind::kUndefined, *value.reason};
}

void require_defined(const Value& value) {
  if (const auto* missing = std::get_if<Undefined>(&value)) undefined_error(*missing);
}

bool truthy(Run& run, const Value& value) {
  if (const auto* boolean = std::get_if<bool>(&value)) return *boolean;
  if (const auto* text = text_of(value)) return !text->view().empty();
  if (is<None>(value) || is<Undefined>(value) || is<Unset>(value)) return false;
  if (const auto* integer = std::get_if<Int>(&value)) return *integer != 0;
  if (const auto* real = std::get_if<double>(&value)) return *real != 0;
  if (const auto* sequence = sequence_of(value)) return !sequence->items.empty();
  if (const auto* dict = dict_of(value)) return !dict->entries.empty();
  if (const auto* object = std::get_if<ObjectPtr>(&value))
    return (*object)->length(run).value_or(1) != 0;
  return true;
}

int depth_of(const Value& value) {
  if (const auto* sequence = sequence_of(value)) return sequence->depth;
  if (const auto* dict = dict_of(value)) return dict->depth;
  if (const auto* iterator = std::get_if<IteratorPtr>(&value)) return (*iterator)->depth;
  if (const auto* object = std::get_if<ObjectPtr>(&value)) return (*object)->depth();
  return 0;
}

const Value* Dict::find(Run& run, const Value& key) const {
  if (by_hash.empty()) {
    for (const auto& [name, value] : entries) {
      run.step();
      if (equal(run, name, key)) return &value;
    }
    return nullptr;
  }
  const auto [begin, end] = by_hash.equal_range(hash(run, key));
  for (auto it = begin; it != end; ++it) {
    run.step();
    if (equal(run, entries[it->second].first, key)) return &entries[it->second].second;
  }
  return nullptr;
}

const Value* Dict::find(Run& run, std::string_view key) const {
  if (!by_hash.empty()) {
    const auto [begin, end] = by_hash.equal_range(hash_text(key));
    for (auto it = begin; it != end; ++it) {
      const Text* name = text_of(entries[it->second].first);
      run.step();
      if (name && name->view() == key) return &entries[it->second].second;
    }
    return nullptr;
  }
  for (const auto& [name, value] : entries) {
    const Text* text = text_of(name);
    if (text && text->view() == key) return &value;
  }
  return nullptr;
}

}  // namespace moiety::jinja
