// Filters of lists and dicts.

#include <algorithm>

#include "model/jinja_filters.h"
#include "model/jinja_operators.h"
#include "model/jinja_text.h"

namespace moiety::jinja {
namespace {

bool given_and_true(Run& run, const Value* value) { return value && truthy(run, *value); }

// What values are compared by where case does not count.
Value folded(Run& run, Value value, bool case_sensitive) {
  const Text* text = text_of(value);
  return case_sensitive || !text ? value : run.text(lower(text->view()));
}

Int number_of_items(const Value* value, std::string_view what) {
  const Int number = require_integer(*value);
  if (number > kMaxRange) unsupported(words({std::string(what), " of more than 100000"}));
  return number;
}

// Sorts by keys, stably; reversed order keeps equal items in place too.
std::vector<Value> sorted_by(Run& run,
                             std::vector<Value> items,
                             const std::vector<Value>& keys,
                             bool reverse) {
  std::vector<std::size_t> order(items.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  run.spend(order.size() * (sizeof(std::size_t) + sizeof(Value)));
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return reverse ? less(run, keys[b], keys[a]) : less(run, keys[a], keys[b]);
  });
  std::vector<Value> sorted;
  sorted.reserve(items.size());
  for (std::size_t i : order) sorted.push_back(std::move(items[i]));
  return sorted;
}

template <bool Max>
Value extreme(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound(Max ? "max" : "min", {"case_sensitive", "attribute"}, arguments);
  const bool case_sensitive = given_and_true(run, bound[0]);
  const auto key = [&](const Value& item) {
    return folded(run, at_path(run, item, bound.at(1, Unset{})), case_sensitive);
  };
  Cursor cursor(run, value);
  Value best;
  if (!cursor.next(best)) return undefined("No aggregated item, sequence was empty.");
  Value best_key = key(best);
  for (Value item; cursor.next(item);) {
    Value item_key = key(item);
    if (Max ? !less(run, best_key, item_key) : !less(run, item_key, best_key)) continue;
    best = std::move(item);
    best_key = std::move(item_key);
  }
  return best;
}

// select, reject and their attr forms: with an attribute, the first argument names it.
template <bool Wanted, bool ByAttribute>
Value choose(Run& run, const Value& value, const Arguments& arguments) {
  return run.iterator("generator", [&](std::vector<Value>& items) {
    if (!truthy(run, value)) return;
    Arguments rest = arguments;
    Value path = Unset{};
    if (ByAttribute) {
      if (rest.positional.empty()) runtime_error("Missing parameter for attribute name");
      path = rest.positional.front();
      rest.positional.erase(rest.positional.begin());
    }
    Test test = nullptr;
    if (!rest.positional.empty()) {
      const Text* name = text_of(rest.positional.front());
      test = name ? find_test(name->view()) : nullptr;
      if (!test) runtime_error(words({"No test named ", repr(run, rest.positional.front())}));
      rest.positional.erase(rest.positional.begin());
    }
    Cursor cursor(run, value);
    for (Value item; cursor.next(item);) {
      const Value looked_at = at_path(run, item, path);
      if ((test ? test(run, looked_at, rest) : truthy(run, looked_at)) == Wanted)
        items.push_back(std::move(item));
    }
  });
}

}  // namespace

Value at_path(Run& run, const Value& value, const Value& path, const Value& otherwise) {
  if (is<Unset>(path) || is<None>(path)) return value;
  const auto defaulted = [&](Value item) {
    return is<Undefined>(item) && !is<Unset>(otherwise) && !is<None>(otherwise) ? otherwise : item;
  };
  const Text* text = text_of(path);
  if (!text) return defaulted(get_item(run, value, path));
  Value item = value;
  for (std::string_view part : split_at(run, text->view(), ".", ~std::size_t{0}, false)) {
    const bool is_index = !part.empty() && part.find_first_not_of("0123456789") == part.npos;
    item = defaulted(get_item(
        run, item, is_index ? Value(*parse_integer(part, 10)) : run.text(std::string(part))));
  }
  return item;
}

Value filter_batch(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("batch", {"linecount", "fill_with"}, arguments, 1);
  return run.iterator("generator", [&](std::vector<Value>& items) {
    const Int size = number_of_items(bound[0], "batch");
    std::vector<Value> batch;
    Cursor cursor(run, value);
    for (Value item; cursor.next(item); batch.push_back(std::move(item))) {
      if (static_cast<Int>(batch.size()) == size)
        items.push_back(run.list(std::exchange(batch, {})));
    }
    if (batch.empty()) return;
    while (bound[1] && !is<None>(*bound[1]) && static_cast<Int>(batch.size()) < size)
      batch.push_back(*bound[1]);
    items.push_back(run.list(std::move(batch)));
  });
}

Value filter_slice(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("slice", {"slices", "fill_with"}, arguments, 1);
  return run.iterator("generator", [&](std::vector<Value>& items) {
    const std::vector<Value> all = collect(run, value);
    const Int slices = number_of_items(bound[0], "slice");
    if (slices == 0) runtime_error("division by zero");
    if (slices < 0) return;
    const auto count = static_cast<std::size_t>(slices);
    std::size_t start = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const bool extra = i < all.size() % count;
      const std::size_t size = all.size() / count + (extra ? 1 : 0);
      std::vector<Value> slice(all.begin() + static_cast<std::ptrdiff_t>(start),
                               all.begin() + static_cast<std::ptrdiff_t>(start + size));
      if (bound[1] && !is<None>(*bound[1]) && !extra) slice.push_back(*bound[1]);
      items.push_back(run.list(std::move(slice)));
      start += size;
    }
  });
}

Value filter_dictsort(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("dictsort", {"case_sensitive", "by", "reverse"}, arguments);
  const Text* by = bound[1] ? text_of(*bound[1]) : nullptr;
  const std::string_view what = by ? by->view() : bound[1] ? "" : "key";
  if (what != "key" && what != "value")
    runtime_error("You can only sort by either \"key\" or \"value\"");
  require_defined(value);
  const Dict* dict = dict_of(value);
  if (!dict) type_error(words({"dictsort needs a dict, not ", std::string(type_name(value))}));
  std::vector<Value> items;
  std::vector<Value> keys;
  for (const auto& [key, each] : dict->entries) {
    items.push_back(run.tuple({key, each}));
    keys.push_back(folded(run, what == "key" ? key : each, given_and_true(run, bound[0])));
  }
  return run.list(sorted_by(run, std::move(items), keys, given_and_true(run, bound[2])));
}

Value filter_sort(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("sort", {"reverse", "case_sensitive", "attribute"}, arguments);
  const bool case_sensitive = given_and_true(run, bound[1]);
  std::vector<Value> paths = {bound.at(2, None{})};
  if (const Text* text = text_of(paths[0])) {
    const Parts parts = split_at(run, text->view(), ",", ~std::size_t{0}, false);
    paths.clear();
    for (std::string_view part : parts) paths.push_back(run.text(std::string(part)));
  }
  std::vector<Value> items = collect(run, value);
  std::vector<Value> keys;
  for (const Value& item : items) {
    std::vector<Value> key;
    for (const Value& path : paths)
      key.push_back(folded(run, at_path(run, item, path), case_sensitive));
    keys.push_back(run.list(std::move(key)));
  }
  return run.list(sorted_by(run, std::move(items), keys, given_and_true(run, bound[0])));
}

Value filter_unique(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("unique", {"case_sensitive", "attribute"}, arguments);
  return run.iterator("generator", [&](std::vector<Value>& items) {
    std::unordered_multimap<std::size_t, Value> seen;
    Cursor cursor(run, value);
    for (Value item; cursor.next(item);) {
      Value key =
          folded(run, at_path(run, item, bound.at(1, Unset{})), given_and_true(run, bound[0]));
      const std::size_t hashed = hash(run, key);
      const auto [begin, end] = seen.equal_range(hashed);
      if (std::any_of(begin, end, [&](const auto& known) { return equal(run, known.second, key); }))
        continue;
      seen.emplace(hashed, std::move(key));
      items.push_back(std::move(item));
    }
  });
}

Value filter_min(Run& run, const Value& value, const Arguments& arguments) {
  return extreme<false>(run, value, arguments);
}

Value filter_max(Run& run, const Value& value, const Arguments& arguments) {
  return extreme<true>(run, value, arguments);
}

Value filter_select(Run& run, const Value& value, const Arguments& arguments) {
  return choose<true, false>(run, value, arguments);
}

Value filter_reject(Run& run, const Value& value, const Arguments& arguments) {
  return choose<false, false>(run, value, arguments);
}

Value filter_selectattr(Run& run, const Value& value, const Arguments& arguments) {
  return choose<true, true>(run, value, arguments);
}

Value filter_rejectattr(Run& run, const Value& value, const Arguments& arguments) {
  return choose<false, true>(run, value, arguments);
}

Value filter_map(Run& run, const Value& value, const Arguments& arguments) {
  return run.iterator("generator", [&](std::vector<Value>& items) {
    if (!truthy(run, value)) return;
    const bool by_attribute =
        arguments.positional.empty() && !arguments.named.empty() &&
        std::any_of(arguments.named.begin(), arguments.named.end(),
                    [](const auto& named) { return named.first == "attribute"; });
    if (by_attribute) {
      const Bound bound("map", {"attribute", "default"}, arguments, 1);
      Cursor cursor(run, value);
      for (Value item; cursor.next(item);)
        items.push_back(at_path(run, item, *bound[0], bound.at(1, Unset{})));
      return;
    }
    Arguments rest = arguments;
    if (rest.positional.empty()) runtime_error("map requires a filter argument");
    const Text* name = text_of(rest.positional.front());
    const Filter filter = name ? find_filter(name->view()) : nullptr;
    if (!filter && name && is_jinja_filter(name->view()))
      unsupported(words({"the filter ", quoted(name->view())}));
    if (!filter) runtime_error(words({"No filter named ", repr(run, rest.positional.front())}));
    rest.positional.erase(rest.positional.begin());
    Cursor cursor(run, value);
    for (Value item; cursor.next(item);) {
      const Nested nested(run);  // filters may call each other this way
      items.push_back(filter(run, item, rest));
    }
  });
}

Value filter_items(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("items", {}, arguments);
  return run.iterator("generator", [&](std::vector<Value>& items) {
    if (is<Undefined>(value)) return;
    const Dict* dict = dict_of(value);
    if (!dict) type_error("Can only get item pairs from a mapping.");
    for (const auto& [key, each] : dict->entries) items.push_back(run.tuple({key, each}));
  });
}

Value filter_join(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("join", {"d", "attribute"}, arguments);
  const std::string separator = bound[0] ? to_text(run, *bound[0]) : "";
  std::string out;
  bool first = true;
  Cursor cursor(run, value);
  for (Value item; cursor.next(item); first = false) {
    const std::string text = to_text(run, at_path(run, item, bound.at(1, Unset{})));
    run.spend(separator.size() + text.size());
    if (!first) out += separator;
    out += text;
  }
  return run.text(std::move(out));
}

Value filter_first(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("first", {}, arguments);
  Cursor cursor(run, value);
  Value item;
  return cursor.next(item) ? item : undefined("No first item, sequence was empty.");
}

Value filter_last(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("last", {}, arguments);
  if (is<IteratorPtr>(value))
    type_error(words({"'", std::string(type_name(value)), "' object is not reversible"}));
  if (const Text* text = text_of(value)) {
    if (text->view().empty()) return undefined("No last item, sequence was empty.");
    return get_item(run, value, Int{-1});
  }
  std::vector<Value> items = collect(run, value);
  return items.empty() ? undefined("No last item, sequence was empty.") : std::move(items.back());
}

Value filter_length(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("length", {}, arguments);
  return static_cast<Int>(length(run, value));
}

Value filter_list(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("list", {}, arguments);
  return run.list(collect(run, value));
}

Value filter_reverse(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("reverse", {}, arguments);
  if (is<Text>(value)) return get_slice(run, value, Unset{}, Unset{}, Int{-1});
  if (!is_iterable(value)) runtime_error("argument must be iterable");
  std::vector<Value> items = collect(run, value);
  std::reverse(items.begin(), items.end());
  if (is<IteratorPtr>(value)) return run.list(std::move(items));
  return run.iterator("reversed", [&](std::vector<Value>& out) { out = std::move(items); });
}

}  // namespace moiety::jinja
