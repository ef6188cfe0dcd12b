#pragma once

#include <functional>
#include <string_view>

#include "model/jinja_run.h"
#include "model/jinja_value.h"

namespace moiety::jinja {

using Filter = Value (*)(Run& run, const Value& value, const Arguments& arguments);
using Test = bool (*)(Run& run, const Value& value, const Arguments& arguments);

/// nullptr: there is none of this name.
Filter find_filter(std::string_view name);
Test find_test(std::string_view name);
/// Jinja has a filter or test of this name, whether or not this engine has it.
bool is_jinja_filter(std::string_view name);

/// The functions that every template can call by name (range, namespace, raise_exception, ...);
/// Unset: none.
Value global(std::string_view name);

/// The value at a path such as "function.name" or "args.0", looked up as Jinja's `attribute`
/// arguments are. Unset or None as the path: the value itself. Undefined parts on the way are
/// replaced by `otherwise` if it is set.
Value at_path(Run& run, const Value& value, const Value& path, const Value& otherwise = Unset{});

// Parts of the table of filters, by file.
Value filter_abs(Run&, const Value&, const Arguments&);
Value filter_float(Run&, const Value&, const Arguments&);
Value filter_int(Run&, const Value&, const Arguments&);
Value filter_round(Run&, const Value&, const Arguments&);
Value filter_sum(Run&, const Value&, const Arguments&);
Value filter_batch(Run&, const Value&, const Arguments&);
Value filter_dictsort(Run&, const Value&, const Arguments&);
Value filter_first(Run&, const Value&, const Arguments&);
Value filter_items(Run&, const Value&, const Arguments&);
Value filter_join(Run&, const Value&, const Arguments&);
Value filter_last(Run&, const Value&, const Arguments&);
Value filter_length(Run&, const Value&, const Arguments&);
Value filter_list(Run&, const Value&, const Arguments&);
Value filter_map(Run&, const Value&, const Arguments&);
Value filter_max(Run&, const Value&, const Arguments&);
Value filter_min(Run&, const Value&, const Arguments&);
Value filter_reject(Run&, const Value&, const Arguments&);
Value filter_rejectattr(Run&, const Value&, const Arguments&);
Value filter_reverse(Run&, const Value&, const Arguments&);
Value filter_select(Run&, const Value&, const Arguments&);
Value filter_selectattr(Run&, const Value&, const Arguments&);
Value filter_slice(Run&, const Value&, const Arguments&);
Value filter_sort(Run&, const Value&, const Arguments&);
Value filter_unique(Run&, const Value&, const Arguments&);

}  // namespace moiety::jinja
