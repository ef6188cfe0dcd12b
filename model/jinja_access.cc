// Attributes, items and slices of values, as Jinja's sandbox gives them out.

#include <algorithm>

#include "model/jinja_methods.h"
#include "model/jinja_operators.h"
#include "model/jinja_run.h"
#include "model/jinja_text.h"

namespace moiety::jinja {
namespace {

std::string described(const Value& value) {
  if (is<None>(value)) return "None";
  std::string out(type_name(value));
  return out += " object";
}

Value no_attribute(const Value& value, std::string_view name) {
  std::string reason = "'";
  reason += described(value);
  reason += "' has no attribute ";
  return undefined(reason += quoted(name));
}

// obj[key] of Python; nullopt where it raises TypeError or LookupError.
std::optional<Value> index(Run& run, const Value& value, const Value& key) {
  if (const Dict* dict = dict_of(value)) {
    if (is<SequencePtr>(key) || is<DictPtr>(key)) {
      try {
        hash(run, key);
      } catch (const Failure& failure) {
        if (failure.kind == Failure::Kind::kType) return std::nullopt;
        throw;
      }
    }
    const Value* found = dict->find(run, key);
    return found ? std::optional(*found) : std::nullopt;
  }
  const auto position = integer_of(key);
  if (!position) return std::nullopt;
  const auto resolve = [&](std::size_t size) -> std::optional<std::size_t> {
    const Int at = *position < 0 ? *position + static_cast<Int>(size) : *position;
    if (at < 0 || at >= static_cast<Int>(size)) return std::nullopt;
    return static_cast<std::size_t>(at);
  };
  if (const Sequence* sequence = sequence_of(value); sequence && !sequence->is_view()) {
    const auto at = resolve(sequence->items.size());
    return at ? std::optional(sequence->items[*at]) : std::nullopt;
  }
  if (const Text* text = text_of(value)) {
    run.spend(text->view().size() / 8);
    const auto at = resolve(count_characters(text->view()));
    if (!at) return std::nullopt;
    const std::string_view rest = text->view().substr(character_offset(text->view(), *at));
    return run.text(std::string(rest.substr(0, character_bytes(rest))), text->markup);
  }
  return std::nullopt;
}

}  // namespace

std::optional<Value> python_attribute(Run& run, const Value& value, std::string_view name) {
  const bool is_dunder = name.size() > 4 && name.starts_with("__") && name.ends_with("__");
  std::optional<Value> found;
  if (const auto* object = std::get_if<ObjectPtr>(&value)) {
    found = (*object)->attribute(run, name);
  } else {
    found = builtin_attribute(run, value, name);
  }
  if (is_dunder || (found && name.starts_with('_'))) {
    std::string reason = "access to attribute ";
    reason += quoted(name) + " of '";
    reason += type_name(value);
    return undefined(reason += "' object is unsafe");
  }
  return found;
}

Value get_attribute(Run& run, const Value& value, std::string_view name) {
  require_defined(value);
  if (auto found = python_attribute(run, value, name)) return *found;
  if (const Dict* dict = dict_of(value)) {
    if (const Value* found = dict->find(run, name)) return *found;
  }
  return no_attribute(value, name);
}

Value get_item(Run& run, const Value& value, const Value& key) {
  require_defined(value);
  if (auto found = index(run, value, key)) return *found;
  if (const Text* name = text_of(key)) {
    if (auto found = python_attribute(run, value, name->view())) return *found;
    return no_attribute(value, name->view());
  }
  std::string reason = described(value);
  reason += " has no element ";
  return undefined(reason += is<Undefined>(key) ? "Undefined" : repr(run, key));
}

Int require_integer(const Value& value) {
  require_defined(value);
  if (const auto integer = integer_of(value)) return *integer;
  std::string message = "'";
  type_error(
      message.append(type_name(value)).append("' object cannot be interpreted as an integer"));
}

SliceBounds slice_bounds(Int length, const Value& start, const Value& stop, const Value& step) {
  const auto given = [](const Value& value) -> std::optional<Int> {
    if (is<Unset>(value) || is<None>(value)) return std::nullopt;
    if (const auto integer = integer_of(value)) return integer;
    type_error("slice indices must be integers or None");
  };
  const Int by = given(step).value_or(1);
  if (by == 0) value_error("slice step cannot be zero");
  const Int lowest = by < 0 ? -1 : 0;
  const Int highest = by < 0 ? length - 1 : length;
  const auto bound = [&](std::optional<Int> at, Int otherwise) {
    if (!at) return otherwise;
    if (*at < 0) return *at < -length ? lowest : std::max(*at + length, lowest);
    return std::min(*at, highest);
  };
  const Int from = bound(given(start), by < 0 ? highest : lowest);
  const Int to = bound(given(stop), by < 0 ? lowest : highest);
  return {from, to, by};
}

namespace {

// Calls visit(index) for each index of the slice.
template <class Visit>
void for_each_index(const SliceBounds& bounds, Int length, Visit visit) {
  if (bounds.step > length || bounds.step < -length) {  // one step leaves the sequence
    if (bounds.step > 0 ? bounds.start < bounds.stop : bounds.start > bounds.stop)
      visit(bounds.start);
    return;
  }
  for (Int i = bounds.start; bounds.step > 0 ? i < bounds.stop : i > bounds.stop; i += bounds.step)
    visit(i);
}

}  // namespace

Value get_slice(
    Run& run, const Value& value, const Value& start, const Value& stop, const Value& step) {
  require_defined(value);
  if (const Text* text = text_of(value)) {
    const std::string_view all = text->view();
    run.spend(all.size() / 8);
    const auto size = static_cast<Int>(count_characters(all));
    const SliceBounds bounds = slice_bounds(size, start, stop, step);
    if (bounds.step == 1) {
      if (bounds.start >= bounds.stop) return run.text("", text->markup);
      const std::size_t from = character_offset(all, static_cast<std::size_t>(bounds.start));
      const std::string_view rest = all.substr(from);
      const std::size_t bytes =
          character_offset(rest, static_cast<std::size_t>(bounds.stop - bounds.start));
      return run.text(std::string(rest.substr(0, bytes)), text->markup);
    }
    run.spend(all.size() * sizeof(std::string_view));
    const std::vector<std::string_view> each = characters(all);
    std::string out;
    for_each_index(bounds, size, [&](Int i) { out += each[static_cast<std::size_t>(i)]; });
    return run.text(std::move(out), text->markup);
  }
  const Sequence* sequence = sequence_of(value);
  if (!sequence || sequence->is_view()) {
    std::string message = "'";
    type_error(message.append(type_name(value)).append("' object cannot be sliced"));
  }
  const auto size = static_cast<Int>(sequence->items.size());
  const SliceBounds bounds = slice_bounds(size, start, stop, step);
  auto out = std::make_shared<Sequence>();
  out->type = sequence->type;
  out->depth = sequence->depth;
  for_each_index(bounds, size, [&](Int i) {
    out->items.push_back(sequence->items[static_cast<std::size_t>(i)]);
  });
  run.spend(out->items.size() * sizeof(Value));
  if (sequence->type == Sequence::Type::kRange) {
    if (bounds.step > kMaxRange || bounds.step < -kMaxRange)
      unsupported("slicing a range by so large a step");
    out->start = sequence->start + bounds.start * sequence->step;
    out->stop = sequence->start + bounds.stop * sequence->step;
    out->step = sequence->step * bounds.step;
  }
  return SequencePtr(std::move(out));
}

}  // namespace moiety::jinja
