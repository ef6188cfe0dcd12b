#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

/// Typed access to the fields of our JSON files. Every error is kInvalidArgument and starts with
/// the field's path.
namespace moiety::planner {

/// Parses `json` as an object whose "format" is `format`.
Result<boost::json::object> parse_file_object(std::string_view json, std::string_view format);

/// `path` is the object's own path with its trailing dot ("domains.python."), empty at the top.
Result<std::string> string_field(const boost::json::object& object,
                                 std::string_view path,
                                 std::string_view key);
Result<std::int64_t> count_field(const boost::json::object& object,
                                 std::string_view path,
                                 std::string_view key);
Result<const boost::json::array*> array_field(const boost::json::object& object,
                                              std::string_view path,
                                              std::string_view key);
Result<const boost::json::object*> object_field(const boost::json::object& object,
                                                std::string_view path,
                                                std::string_view key);

/// "a string", "an array", ...: what a value is, for messages.
std::string_view kind_of(const boost::json::value& value);

/// The value in quotes, escaped.
std::string quoted(std::string_view text);

/// "a, b, c".
std::string join(const std::vector<std::string>& items);

}  // namespace moiety::planner
