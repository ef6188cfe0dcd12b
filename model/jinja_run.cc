#include "model/jinja_run.h"

#include <algorithm>

#include "model/jinja_operators.h"
#include "model/jinja_text.h"

namespace moiety::jinja {

std::optional<Value> Namespace::attribute(Run&, std::string_view name) {
  for (const auto& [key, value] : attributes) {
    if (key == name) return value;
  }
  return std::nullopt;
}

void Namespace::set(std::string_view name, Value value) {
  for (auto& [key, old] : attributes) {
    if (key != name) continue;
    old = std::move(value);
    return;
  }
  attributes.emplace_back(name, std::move(value));
}

std::string Namespace::repr(Run& run) const {
  const Nested nested(run);
  std::vector<std::pair<Value, Value>> entries;
  for (const auto& [key, value] : attributes) entries.emplace_back(run.text(key), value);
  std::string out = "<Namespace ";
  out += jinja::repr(run, run.dict(std::move(entries)));
  return out += '>';
}

Run::~Run() {
  for (const auto& each : namespaces_) each->attributes.clear();
}

void Run::spend(Int bytes_each, Int times) {
  if (bytes_each <= 0 || times <= 0) return;
  if (times > Int{limits_.made_bytes} || bytes_each > Int{limits_.made_bytes}) too_much_memory();
  const Int bytes = bytes_each * times;
  if (bytes > Int{limits_.made_bytes}) too_much_memory();
  spend(static_cast<std::size_t>(bytes));
}

Value Run::text(std::string bytes, bool markup) {
  spend(bytes.size() + kTextBytes);
  if (bytes.size() > limits_.text_bytes) {
    throw Failure{Failure::Kind::kLimit, words({"a string of more than ",
                                                std::to_string(limits_.text_bytes >> 20), " MiB"})};
  }
  return Text{std::make_shared<const std::string>(std::move(bytes)), markup};
}

int Run::account(const std::vector<Value>& items) {
  spend(items.size() * sizeof(Value));
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, depth_of(item));
  if (depth >= kMaxValueDepth)
    throw Failure{Failure::Kind::kLimit, "lists and dicts nested too deeply"};
  return depth + 1;
}

Value Run::sequence(Sequence::Type type, std::vector<Value> items) {
  auto made = std::make_shared<Sequence>();
  made->type = type;
  made->depth = account(items);
  made->items = std::move(items);
  return SequencePtr(std::move(made));
}

Value Run::dict(std::vector<std::pair<Value, Value>> entries) {
  auto made = std::make_shared<Dict>();
  const bool indexed = entries.size() > 8;
  int depth = 0;
  for (auto& [key, value] : entries) {
    const std::size_t hashed = hash(*this, key);
    depth = std::max({depth, depth_of(key), depth_of(value)});
    if (const Value* known = made->find(*this, key)) {
      const_cast<Value&>(*known) = std::move(value);
      continue;
    }
    if (indexed) made->by_hash.emplace(hashed, made->entries.size());
    made->entries.emplace_back(std::move(key), std::move(value));
  }
  spend(made->entries.size() * 2 * sizeof(Value));
  if (depth >= kMaxValueDepth)
    throw Failure{Failure::Kind::kLimit, "lists and dicts nested too deeply"};
  made->depth = depth + 1;
  return DictPtr(std::move(made));
}

std::shared_ptr<Namespace> Run::make_namespace() {
  spend(sizeof(Namespace));
  return namespaces_.emplace_back(std::make_shared<Namespace>());
}

void Run::too_much_work() {
  throw Failure{Failure::Kind::kLimit,
                words({"the template takes more than ", std::to_string(limits_.steps), " steps"})};
}

void Run::too_much_memory() {
  throw Failure{Failure::Kind::kLimit,
                words({"the template makes more than ", std::to_string(limits_.made_bytes >> 20),
                       " MiB of values"})};
}

Cursor::Cursor(Run& run, Value source) : run_(run), source_(std::move(source)) {
  if (is_iterable(source_)) return;
  if (is<ObjectPtr>(source_) && type_name(source_) == "LoopContext")
    unsupported("iterating over 'loop'");
  std::string message = "'";
  type_error(message.append(type_name(source_)).append("' object is not iterable"));
}

bool Cursor::next(Value& out) {
  run_.step();
  if (const Text* text = text_of(source_)) {
    const std::string_view rest = text->view().substr(position_);
    if (rest.empty()) return false;
    const std::size_t bytes = character_bytes(rest);
    out = run_.text(std::string(rest.substr(0, bytes)));
    position_ += bytes;
    return true;
  }
  if (const Sequence* sequence = sequence_of(source_)) {
    if (position_ == sequence->items.size()) return false;
    out = sequence->items[position_++];
    return true;
  }
  if (const Dict* dict = dict_of(source_)) {
    if (position_ == dict->entries.size()) return false;
    out = dict->entries[position_++].first;
    return true;
  }
  if (auto* iterator = std::get_if<IteratorPtr>(&source_)) {
    Iterator& from = **iterator;
    if (from.next < from.items.size()) {
      out = from.items[from.next++];
      return true;
    }
    if (from.failure) {
      const Failure failure = std::move(*from.failure);
      from.failure.reset();
      throw failure;
    }
  }
  return false;
}

std::optional<std::size_t> Cursor::length() const { return try_length(run_, source_); }

bool is_iterable(const Value& value) {
  return is<Text>(value) || is<SequencePtr>(value) || is<DictPtr>(value) ||
         is<IteratorPtr>(value) || is<Undefined>(value);
}

std::vector<Value> collect(Run& run, const Value& value) {
  std::vector<Value> items;
  Cursor cursor(run, value);
  for (Value item; cursor.next(item);) items.push_back(std::move(item));
  return items;
}

std::optional<std::size_t> try_length(Run& run, const Value& value) {
  if (const Text* text = text_of(value)) {
    run.spend(text->view().size() / 8);
    return count_characters(text->view());
  }
  if (const Sequence* sequence = sequence_of(value)) return sequence->items.size();
  if (const Dict* dict = dict_of(value)) return dict->entries.size();
  if (is<Undefined>(value)) return 0;
  if (const auto* object = std::get_if<ObjectPtr>(&value)) return (*object)->length(run);
  return std::nullopt;
}

std::size_t length(Run& run, const Value& value) {
  if (const auto known = try_length(run, value)) return *known;
  std::string message = "object of type '";
  type_error(message.append(type_name(value)).append("' has no len()"));
}

Value call(Run& run, const Value& callee, Arguments arguments) {
  require_defined(callee);
  if (const auto* object = std::get_if<ObjectPtr>(&callee)) {
    const ObjectPtr alive = *object;
    return alive->call(run, std::move(arguments));
  }
  std::string message = "'";
  type_error(message.append(type_name(callee)).append("' object is not callable"));
}

Bound::Bound(std::string_view function,
             const std::vector<std::string_view>& names,
             const Arguments& arguments,
             std::size_t required)
    : values_(names.size(), nullptr) {
  const std::string where = std::string(function) + "()";
  if (arguments.positional.size() > names.size()) {
    type_error(words({where, " takes at most ", std::to_string(names.size()), " arguments (",
                      std::to_string(arguments.positional.size()), " given)"}));
  }
  for (std::size_t i = 0; i < arguments.positional.size(); ++i)
    values_[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.named) {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end())
      type_error(words({where, " got an unexpected keyword argument '", name, "'"}));
    const Value*& slot = values_[static_cast<std::size_t>(found - names.begin())];
    if (slot) type_error(words({where, " got multiple values for argument '", name, "'"}));
    slot = &value;
  }
  for (std::size_t i = 0; i < required; ++i) {
    if (!values_[i])
      type_error(words({where, " misses the argument '", std::string(names[i]), "'"}));
  }
}

}  // namespace moiety::jinja
