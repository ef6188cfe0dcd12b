#include "planner/json_fields.h"

#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>

#include "planner/exact_json.h"

namespace moiety::planner {

namespace json = boost::json;

namespace {

Error wrong_kind(std::string_view path,
                 std::string_view key,
                 std::string_view expected,
                 const json::value& value) {
  return fail(ErrorCode::kInvalidArgument, std::string(path) + std::string(key) + ": expected " +
                                               std::string(expected) + ", found " +
                                               std::string(kind_of(value)));
}

Result<const json::value*> field(const json::object& object,
                                 std::string_view path,
                                 std::string_view key) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr) {
    return fail(ErrorCode::kInvalidArgument,
                std::string(path) + std::string(key) + ": missing; add the field");
  }
  return value;
}

}  // namespace

Result<json::object> parse_file_object(std::string_view text, std::string_view format) {
  boost::system::error_code error;
  json::value value = parse_exact_json(text, error);
  if (error) {
    return fail(ErrorCode::kInvalidArgument,
                "not JSON (" + error.message() + "); expected a " + quoted(format) + " file");
  }
  if (!value.is_object()) {
    return fail(ErrorCode::kInvalidArgument,
                "expected an object with \"format\": " + quoted(format) + ", found " +
                    std::string(kind_of(value)));
  }
  MOIETY_ASSIGN(const std::string found, string_field(value.get_object(), "", "format"));
  if (found != format) {
    return fail(ErrorCode::kInvalidArgument,
                "format: " + quoted(found) + " is not supported here; expected " + quoted(format));
  }
  return std::move(value.get_object());
}

Result<std::string> string_field(const json::object& object,
                                 std::string_view path,
                                 std::string_view key) {
  MOIETY_ASSIGN(const json::value* value, field(object, path, key));
  if (!value->is_string()) return wrong_kind(path, key, "a string", *value);
  return std::string(value->get_string());
}

Result<std::int64_t> count_field(const json::object& object,
                                 std::string_view path,
                                 std::string_view key) {
  MOIETY_ASSIGN(const json::value* value, field(object, path, key));
  if (!value->is_int64() || value->get_int64() < 0) {
    return wrong_kind(path, key, "an integer of 0 or more", *value);
  }
  return value->get_int64();
}

Result<const json::array*> array_field(const json::object& object,
                                       std::string_view path,
                                       std::string_view key) {
  MOIETY_ASSIGN(const json::value* value, field(object, path, key));
  if (!value->is_array()) return wrong_kind(path, key, "an array", *value);
  return &value->get_array();
}

Result<const json::object*> object_field(const json::object& object,
                                         std::string_view path,
                                         std::string_view key) {
  MOIETY_ASSIGN(const json::value* value, field(object, path, key));
  if (!value->is_object()) return wrong_kind(path, key, "an object", *value);
  return &value->get_object();
}

std::string_view kind_of(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null:
      return "null";
    case json::kind::bool_:
      return "a boolean";
    case json::kind::int64:
      return value.get_int64() < 0 ? "a negative number" : "a number";
    case json::kind::uint64:
      return "a number that is too large";
    case json::kind::double_:
      return "a number with a fraction or exponent";
    case json::kind::string:
      return "a string";
    case json::kind::array:
      return "an array";
    case json::kind::object:
      return "an object";
  }
  return "something else";
}

std::string quoted(std::string_view text) {
  return json::serialize(json::string_view(text.data(), text.size()));
}

std::string join(const std::vector<std::string>& items) {
  std::string joined;
  for (const std::string& item : items) {
    if (!joined.empty()) joined += ", ";
    joined += item;
  }
  return joined;
}

}  // namespace moiety::planner
