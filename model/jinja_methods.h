#pragma once

#include <optional>
#include <string_view>

#include "model/jinja_run.h"
#include "model/jinja_value.h"

namespace moiety::jinja {

/// A method of a string, list, tuple or dict, or an attribute of a number, as Python has it;
/// nullopt: Python has none of this name. Undefined: the sandbox hides it because it changes the
/// value. Refuses by name what Python has and this engine has not.
std::optional<Value> builtin_attribute(Run& run, const Value& value, std::string_view name);

using Method = Value (*)(Run& run, const Value& self, const Arguments& arguments);

/// nullptr: there is none of this name.
Method find_string_method(std::string_view name);
Method find_container_method(const Value& value, std::string_view name);

}  // namespace moiety::jinja
