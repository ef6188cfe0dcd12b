// Comparisons and hashes.

#include <algorithm>
#include <cmath>
#include <functional>

#include "model/jinja_operators.h"

namespace moiety::jinja {
namespace {

constexpr std::string_view kSpelling[] = {"==", "!=", "<", "<=", ">", ">=", "in", "not in"};

// -1, 0, 1; 2 where a NaN is involved. Exact, as in Python: integers are not rounded.
int order(Int integer, double real) {
  if (std::isnan(real)) return 2;
  if (real >= 0x1p127) return -1;
  if (real < -0x1p127) return 1;
  const double floored = std::floor(real);
  const auto whole = static_cast<Int>(floored);
  if (integer != whole) return integer < whole ? -1 : 1;
  return floored < real ? -1 : 0;
}

template <class T>
int order_of(T left, T right) {
  if (left == right) return 0;
  return left < right ? -1 : left > right ? 1 : 2;
}

// Of two numbers; nullopt if one is none.
std::optional<int> number_order(const Value& left, const Value& right) {
  const auto left_integer = integer_of(left);
  const auto right_integer = integer_of(right);
  if (left_integer && right_integer) return order_of(*left_integer, *right_integer);
  const auto* left_real = std::get_if<double>(&left);
  const auto* right_real = std::get_if<double>(&right);
  if (left_real && right_real) return order_of(*left_real, *right_real);
  if (left_integer && right_real) return order(*left_integer, *right_real);
  if (left_real && right_integer) {
    const int reversed = order(*right_integer, *left_real);
    return reversed == 2 ? 2 : -reversed;
  }
  return std::nullopt;
}

bool equal_dicts(Run& run, const Dict& left, const Dict& right) {
  if (left.entries.size() != right.entries.size()) return false;
  for (const auto& [key, value] : left.entries) {
    const Value* other = right.find(run, key);
    if (!other || !equal(run, value, *other)) return false;
  }
  return true;
}

bool equal_sequences(Run& run, const Sequence& left, const Sequence& right) {
  if (left.type != right.type || left.type == Sequence::Type::kValues) return false;
  if (left.items.size() != right.items.size()) return false;
  if (left.is_view()) unsupported("comparing views of dicts");
  for (std::size_t i = 0; i < left.items.size(); ++i) {
    if (!equal(run, left.items[i], right.items[i])) return false;
  }
  return true;
}

[[noreturn]] void not_comparable(Comparison op, const Value& left, const Value& right) {
  require_defined(left);
  require_defined(right);
  std::string message = "'";
  message.append(kSpelling[static_cast<std::size_t>(op)])
      .append("' not supported between instances of '");
  type_error(
      message.append(type_name(left)).append("' and '").append(type_name(right)).append("'"));
}

// One of <, <=, >, >=.
bool compare_order(Run& run, Comparison op, const Value& left, const Value& right) {
  const auto holds = [op](int order) {
    switch (op) {
      case Comparison::kLess:
        return order == -1;
      case Comparison::kLessEqual:
        return order == -1 || order == 0;
      case Comparison::kGreater:
        return order == 1;
      default:
        return order == 1 || order == 0;
    }
  };
  run.step();
  if (const auto numbers = number_order(left, right)) return holds(*numbers);
  const Text* left_text = text_of(left);
  const Text* right_text = text_of(right);
  if (left_text && right_text) {  // bytes of UTF-8 have the order of characters
    const int order = left_text->view().compare(right_text->view());
    return holds(order < 0 ? -1 : order > 0 ? 1 : 0);
  }
  const Sequence* a = sequence_of(left);
  const Sequence* b = sequence_of(right);
  if (a && b && a->is_view() && b->is_view()) unsupported("comparing views of dicts");
  if (!a || !b || a->type != b->type || a->type > Sequence::Type::kTuple)
    not_comparable(op, left, right);
  for (std::size_t i = 0; i < std::min(a->items.size(), b->items.size()); ++i) {
    if (!equal(run, a->items[i], b->items[i]))
      return compare_order(run, op, a->items[i], b->items[i]);
  }
  return holds(order_of(a->items.size(), b->items.size()));
}

}  // namespace

bool equal(Run& run, const Value& left, const Value& right) {
  run.step();
  if (const auto numbers = number_order(left, right)) return *numbers == 0;
  if (left.index() != right.index()) return false;
  if (const Text* text = text_of(left)) {
    const Text* other = text_of(right);
    if (text->bytes == other->bytes) return true;
    run.spend(text->view().size() == other->view().size() ? text->view().size() / 16 : 0);
    return text->view() == other->view();
  }
  if (const Sequence* sequence = sequence_of(left)) {
    return sequence == sequence_of(right) || equal_sequences(run, *sequence, *sequence_of(right));
  }
  if (const Dict* dict = dict_of(left))
    return dict == dict_of(right) || equal_dicts(run, *dict, *dict_of(right));
  if (const auto* iterator = std::get_if<IteratorPtr>(&left))
    return *iterator == std::get<IteratorPtr>(right);
  if (const auto* object = std::get_if<ObjectPtr>(&left))
    return *object == std::get<ObjectPtr>(right);
  return true;  // none, undefined
}

bool less(Run& run, const Value& left, const Value& right) {
  return compare_order(run, Comparison::kLess, left, right);
}

bool contains(Run& run, const Value& container, const Value& item) {
  if (const Text* text = text_of(container)) {
    const Text* part = text_of(item);
    if (!part) {
      std::string message = "'in <string>' requires string as left operand, not ";
      type_error(message.append(type_name(item)));
    }
    run.spend(text->view().size() / 8);
    return text->view().find(part->view()) != std::string_view::npos;
  }
  if (const Dict* dict = dict_of(container)) {
    hash(run, item);  // fails on what cannot be a key
    return dict->find(run, item) != nullptr;
  }
  if (!is_iterable(container)) {
    std::string message = "argument of type '";
    type_error(message.append(type_name(container)).append("' is not iterable"));
  }
  Cursor cursor(run, container);
  for (Value each; cursor.next(each);) {
    if (equal(run, each, item)) return true;
  }
  return false;
}

bool compare(Run& run, Comparison op, const Value& left, const Value& right) {
  switch (op) {
    case Comparison::kEqual:
      return equal(run, left, right);
    case Comparison::kNotEqual:
      return !equal(run, left, right);
    case Comparison::kIn:
      return contains(run, right, left);
    case Comparison::kNotIn:
      return !contains(run, right, left);
    default:
      return compare_order(run, op, left, right);
  }
}

std::size_t hash_text(std::string_view text) { return std::hash<std::string_view>{}(text); }

std::size_t hash(Run& run, const Value& value) {
  run.step();
  if (const Text* text = text_of(value)) {
    run.spend(text->view().size() / 8);
    return hash_text(text->view());
  }
  if (const auto number = number_of(value)) return std::hash<double>{}(*number);
  if (const Sequence* sequence = sequence_of(value)) {
    if (sequence->type == Sequence::Type::kTuple || sequence->type == Sequence::Type::kRange) {
      std::size_t mixed = sequence->items.size();
      for (const Value& item : sequence->items) mixed = mixed * 1000003 + hash(run, item);
      return mixed;
    }
  }
  if (is<SequencePtr>(value) || is<DictPtr>(value)) {
    std::string message = "unhashable type: '";
    type_error(message.append(type_name(value)).append("'"));
  }
  if (const auto* object = std::get_if<ObjectPtr>(&value)) return std::hash<ObjectPtr>{}(*object);
  if (const auto* iterator = std::get_if<IteratorPtr>(&value))
    return std::hash<IteratorPtr>{}(*iterator);
  return value.index();
}

}  // namespace moiety::jinja
