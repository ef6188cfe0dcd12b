#include "checkpoint/config_fields.h"

#include <simdjson.h>

#include <cmath>
#include <cstdio>

namespace moiety {

namespace dom = simdjson::dom;

struct ConfigFields::Document {
  dom::parser parser;
};

struct ConfigFields::Value {
  dom::element element;
};

namespace {

// The value as the file spells it, cut where it would drown the message.
std::string spell(const dom::element& element) {
  constexpr std::size_t kLongest = 60;
  std::string text = simdjson::minify(element);
  if (text.size() <= kLongest) return text;
  std::size_t end = kLongest;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0u) == 0x80u) --end;  // whole UTF-8
  return text.substr(0, end) + "...";
}

std::string spell(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

bool switches_nothing_on(const dom::element& element) {
  switch (element.type()) {
    case dom::element_type::NULL_VALUE:
      return true;
    case dom::element_type::BOOL:
      return !element.get_bool().value_unsafe();
    case dom::element_type::INT64:
    case dom::element_type::UINT64:
    case dom::element_type::DOUBLE:
      return element.get_double().value_unsafe() == 0;
    case dom::element_type::STRING:
      return element.get_string().value_unsafe().empty();
    case dom::element_type::ARRAY:
      return dom::array(element.get_array().value_unsafe()).size() == 0;
    case dom::element_type::OBJECT:
      return dom::object(element.get_object().value_unsafe()).size() == 0;
  }
  return false;
}

std::optional<std::int32_t> whole_number(const dom::element& element,
                                         std::int32_t min,
                                         std::int32_t max) {
  std::int64_t value = 0;
  if (element.get_int64().get(value) != simdjson::SUCCESS || value < min || value > max) return {};
  return static_cast<std::int32_t>(value);
}

std::string range_text(std::int32_t min, std::int32_t max) {
  return "a whole number from " + std::to_string(min) + " to " + std::to_string(max) +
         " is understood";
}

}  // namespace

ConfigFields::ConfigFields(std::shared_ptr<const Document> document, std::string prefix)
    : document_(std::move(document)), prefix_(std::move(prefix)) {}

Result<ConfigFields> ConfigFields::parse(std::string_view json) {
  auto document = std::make_shared<Document>();
  Value root;
  const auto error = document->parser.parse(json.data(), json.size()).get(root.element);
  if (error != simdjson::SUCCESS) {
    return fail(ErrorCode::kInvalidArgument,
                std::string("is not JSON: ") + simdjson::error_message(error));
  }
  if (!root.element.is_object()) {
    return fail(ErrorCode::kInvalidArgument, "a JSON object is needed, not " + spell(root.element));
  }
  ConfigFields fields(std::move(document), "");
  MOIETY_TRY(fields.index(root));
  return fields;
}

Result<void> ConfigFields::index(const Value& object) {
  for (const auto& field : dom::object(object.element.get_object().value_unsafe())) {
    const auto value = std::make_shared<const Value>(Value{field.value});
    if (!values_.emplace(std::string(field.key), value).second) {
      return fail(ErrorCode::kInvalidArgument,
                  full_name(field.key) + " stands there twice: remove one of the two");
    }
  }
  return {};
}

bool ConfigFields::has(std::string_view name) const {
  const auto found = values_.find(name);
  return found != values_.end() && !found->second->element.is_null();
}

const ConfigFields::Value* ConfigFields::take(std::string_view name) {
  read_.insert(std::string(name));
  return has(name) ? values_.find(name)->second.get() : nullptr;
}

Error ConfigFields::missing(std::string_view name, std::string_view expected) const {
  return fail(ErrorCode::kInvalidArgument,
              full_name(name) + " is missing: " + std::string(expected));
}

Error ConfigFields::refuse(std::string_view name, std::string_view expected) const {
  const auto found = values_.find(name);
  if (found == values_.end()) return missing(name, expected);
  return fail(
      ErrorCode::kInvalidArgument,
      full_name(name) + " is " + spell(found->second->element) + ": " + std::string(expected));
}

Result<std::int32_t> ConfigFields::integer(std::string_view name,
                                           std::int32_t min,
                                           std::int32_t max,
                                           std::optional<std::int32_t> fallback) {
  const Value* value = take(name);
  if (value == nullptr) {
    if (fallback) return *fallback;
    return missing(name, range_text(min, max));
  }
  const auto result = whole_number(value->element, min, max);
  if (!result) return refuse(name, range_text(min, max));
  return *result;
}

Result<double> ConfigFields::number(std::string_view name,
                                    double min,
                                    double max,
                                    std::optional<double> fallback) {
  const std::string expected =
      "a number from " + spell(min) + " to " + spell(max) + " is understood";
  const Value* value = take(name);
  if (value == nullptr) {
    if (fallback) return *fallback;
    return missing(name, expected);
  }
  double result = 0;
  if (value->element.get_double().get(result) != simdjson::SUCCESS || !std::isfinite(result) ||
      result < min || result > max) {
    return refuse(name, expected);
  }
  return result;
}

Result<bool> ConfigFields::flag(std::string_view name, bool fallback) {
  const Value* value = take(name);
  if (value == nullptr) return fallback;
  bool result = false;
  if (value->element.get_bool().get(result) != simdjson::SUCCESS) {
    return refuse(name, "true or false is understood");
  }
  return result;
}

Result<std::string> ConfigFields::text(std::string_view name, std::string_view fallback) {
  const Value* value = take(name);
  if (value == nullptr) return std::string(fallback);
  std::string_view result;
  if (value->element.get_string().get(result) != simdjson::SUCCESS) {
    return refuse(name, "a string is understood");
  }
  return std::string(result);
}

Result<std::vector<std::int32_t>> ConfigFields::integers(std::string_view name,
                                                         std::int32_t min,
                                                         std::int32_t max) {
  std::vector<std::int32_t> result;
  const Value* value = take(name);
  if (value == nullptr) return result;
  dom::array list;
  if (value->element.get_array().get(list) != simdjson::SUCCESS) {
    const auto single = whole_number(value->element, min, max);
    if (!single) return refuse(name, range_text(min, max) + ", or a list of them");
    result.push_back(*single);
    return result;
  }
  for (const dom::element& element : list) {
    const auto item = whole_number(element, min, max);
    if (!item) {
      return refuse(name, "each entry must be a whole number from " + std::to_string(min) + " to " +
                              std::to_string(max) + ", not " + spell(element));
    }
    result.push_back(*item);
  }
  return result;
}

Result<std::vector<std::string>> ConfigFields::texts(std::string_view name) {
  std::vector<std::string> result;
  const Value* value = take(name);
  if (value == nullptr) return result;
  dom::array list;
  if (value->element.get_array().get(list) != simdjson::SUCCESS) {
    return refuse(name, "a list of strings is understood");
  }
  for (const dom::element& element : list) {
    std::string_view item;
    if (element.get_string().get(item) != simdjson::SUCCESS) {
      return refuse(name, "each entry must be a string, not " + spell(element));
    }
    result.emplace_back(item);
  }
  return result;
}

Result<std::optional<ConfigFields>> ConfigFields::object(std::string_view name) {
  std::optional<ConfigFields> result;
  const Value* value = take(name);
  if (value == nullptr) return result;
  if (!value->element.is_object()) return refuse(name, "a JSON object or null is understood");
  ConfigFields fields(document_, full_name(name) + ".");
  MOIETY_TRY(fields.index(*value));
  result = std::move(fields);
  return result;
}

Result<void> ConfigFields::refuse_unread() const {
  for (const auto& [name, value] : values_) {
    if (name.starts_with('_') || read_.contains(name)) continue;
    if (switches_nothing_on(value->element)) continue;
    return refuse(name, "this field is not understood and may change the model's answer");
  }
  return {};
}

}  // namespace moiety
