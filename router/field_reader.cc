#include "router/field_reader.h"

#include <fmt/format.h>

#include <boost/json.hpp>
#include <cmath>

#include "planner/exact_json.h"

namespace moiety {
namespace json = boost::json;

const json::value* FieldReader::find(std::string_view field) {
  read_.emplace(field);
  const json::value* value = object_.if_contains(field);
  return value == nullptr || value->is_null() ? nullptr : value;
}

void FieldReader::fail(std::string_view field, std::string message) {
  if (!error_) error_ = FieldError{std::string(field), std::move(message)};
}

void FieldReader::read(std::string_view field, bool& out) {
  const json::value* value = find(field);
  if (value == nullptr) return;
  if (!value->is_bool()) return fail(field, fmt::format("{} must be true or false", field));
  out = value->get_bool();
}

void FieldReader::read(std::string_view field, std::string& out) {
  const json::value* value = find(field);
  if (value == nullptr) return;
  if (!value->is_string()) return fail(field, fmt::format("{} must be a string", field));
  out = std::string(value->get_string());
}

void FieldReader::read(std::string_view field, double min, double max, std::optional<float>& out) {
  const json::value* value = find(field);
  if (value == nullptr) return;
  const double number = value->is_number() ? value->to_number<double>() : NAN;
  if (!(number >= min && number <= max)) {
    return fail(field, fmt::format("{} must be a number from {} to {}", field, min, max));
  }
  out = static_cast<float>(number);
}

void FieldReader::read(std::string_view field, double min, double max, float& out) {
  std::optional<float> number;
  read(field, min, max, number);
  if (number) out = *number;
}

void FieldReader::read(std::string_view field,
                       std::int64_t min,
                       std::int64_t max,
                       std::optional<std::int32_t>& out) {
  const json::value* value = find(field);
  if (value == nullptr) return;
  const std::int64_t* number = value->if_int64();
  if (number == nullptr || *number < min || *number > max) {
    return fail(field, fmt::format("{} must be a whole number from {} to {}", field, min, max));
  }
  out = static_cast<std::int32_t>(*number);
}

void FieldReader::read(std::string_view field,
                       std::int64_t min,
                       std::int64_t max,
                       std::int32_t& out) {
  std::optional<std::int32_t> number;
  read(field, min, max, number);
  if (number) out = *number;
}

void FieldReader::ignore(std::initializer_list<std::string_view> fields) {
  for (std::string_view field : fields) read_.emplace(field);
}

void FieldReader::refuse_unless_neutral(std::string_view field,
                                        std::string_view neutral,
                                        std::string_view remedy) {
  const json::value* value = find(field);
  if (value == nullptr) return;
  bool is_neutral = false;
  switch (value->kind()) {
    case json::kind::null:
      is_neutral = true;
      break;
    case json::kind::bool_:
      is_neutral = !value->get_bool();
      break;
    case json::kind::string:
      is_neutral = value->get_string().empty() || value->get_string() == neutral;
      break;
    case json::kind::array:
      is_neutral = value->get_array().empty();
      break;
    case json::kind::object:
      is_neutral = value->get_object().empty();
      break;
    default:
      is_neutral = value->to_number<double>() == 0 || json::serialize(*value) == neutral;
  }
  if (!is_neutral) {
    fail(field, fmt::format("{} is not supported at this value: {}", field, remedy));
  }
}

void FieldReader::refuse_unread() {
  for (const auto& [key, value] : object_) {
    const std::string_view name(key.data(), key.size());
    if (read_.find(name) == read_.end()) {
      fail(name, fmt::format("there is no field '{}' in this API", name));
    }
  }
}

std::optional<std::vector<std::int32_t>> token_ids(const json::array& array) {
  std::vector<std::int32_t> ids;
  ids.reserve(array.size());
  for (const json::value& value : array) {
    const std::int64_t* id = value.if_int64();
    if (id == nullptr || *id < 0 || *id > INT32_MAX) return std::nullopt;
    ids.push_back(static_cast<std::int32_t>(*id));
  }
  return ids;
}

std::optional<std::string> parse_json(std::string_view text, json::value& out) {
  json::parse_options options;
  options.max_depth = kMaxJsonDepth;
  boost::system::error_code error;
  out = planner::parse_exact_json(text, error, options);
  if (!error) return std::nullopt;
  if (error == json::error::too_deep) {
    return fmt::format("has more than {} objects and arrays inside of one another", kMaxJsonDepth);
  }
  return "is not valid JSON: " + error.message();
}

std::optional<FieldError> parse_body(std::string_view body, json::value& out) {
  if (const auto wrong = parse_json(body, out)) return FieldError{"", "the body " + *wrong};
  if (!out.is_object()) return FieldError{"", "the body must be a JSON object"};
  return std::nullopt;
}

}  // namespace moiety
