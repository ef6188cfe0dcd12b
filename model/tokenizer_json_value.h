#pragma once

#include <fmt/format.h>
#include <simdjson.h>

#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "common/result.h"

namespace moiety {

/// A part of a tokenizer.json with the place it came from ("model.merges[3]"), for error messages.
/// For the sources that read the file only: simdjson stays out of other headers.
class JsonValue {
 public:
  JsonValue(simdjson::dom::element json, std::string where)
      : json_(json), where_(std::move(where)) {}

  Error wrong(std::string_view problem) const {
    return fail(ErrorCode::kInvalidArgument,
                where_.empty() ? std::string(problem) : fmt::format("{}: {}", where_, problem));
  }
  Error unsupported(std::string_view what) const {
    return wrong(fmt::format("{} is not supported", what));
  }

  /// Absent and null are the same.
  std::optional<JsonValue> find(std::string_view key) const {
    simdjson::dom::element found;
    if (json_[key].get(found) != simdjson::SUCCESS || found.is_null()) return std::nullopt;
    return JsonValue(found, where_.empty() ? std::string(key) : fmt::format("{}.{}", where_, key));
  }
  Result<JsonValue> at(std::string_view key) const {
    if (auto found = find(key)) return std::move(*found);
    return wrong(fmt::format("has no \"{}\"", key));
  }
  template <class T>
  Result<T> as(std::string_view type) const {
    T value;
    if (json_.get(value) == simdjson::SUCCESS) return value;
    return wrong(fmt::format("is not {}", type));
  }
  Result<std::string_view> text() const { return as<std::string_view>("a string"); }
  Result<std::string_view> text(std::string_view key) const {
    MOIETY_ASSIGN(const JsonValue value, at(key));
    return value.text();
  }
  Result<bool> flag(std::string_view key, bool otherwise) const {
    const auto value = find(key);
    if (!value) return otherwise;
    return value->as<bool>("true or false");
  }
  /// A whole number from 0 to `most`.
  Result<std::int32_t> number(std::int32_t most, std::string_view what) const {
    std::int64_t number = 0;
    if (json_.get(number) != simdjson::SUCCESS || number < 0 || number > most) {
      return wrong(fmt::format("is not {} from 0 to {}", what, most));
    }
    return static_cast<std::int32_t>(number);
  }
  Result<std::int32_t> token_id() const { return number((1 << 24) - 1, "a token id"); }
  Result<std::vector<JsonValue>> items() const {
    MOIETY_ASSIGN(const auto list, as<simdjson::dom::array>("a list"));
    std::vector<JsonValue> values;
    for (const simdjson::dom::element item : list) {
      values.emplace_back(item, fmt::format("{}[{}]", where_, values.size()));
    }
    return values;
  }
  Result<std::vector<JsonValue>> items(std::string_view key) const {
    MOIETY_ASSIGN(const JsonValue list, at(key));
    return list.items();
  }
  /// An object in which no name occurs twice: readers differ in which of them counts.
  Result<simdjson::dom::object> fields() const {
    MOIETY_ASSIGN(const auto object, as<simdjson::dom::object>("an object"));
    std::unordered_set<std::string_view> names;
    for (const auto& [name, value] : object) {
      if (!names.insert(name).second) return wrong(fmt::format("has \"{}\" twice", name));
    }
    return object;
  }
  /// The "type" of a part, which must be an object.
  Result<std::string_view> type() const {
    MOIETY_TRY(fields());
    return text("type");
  }
  bool is_text() const { return json_.is_string(); }
  const simdjson::dom::element& json() const { return json_; }
  const std::string& where() const { return where_; }

 private:
  simdjson::dom::element json_;
  std::string where_;
};

}  // namespace moiety
