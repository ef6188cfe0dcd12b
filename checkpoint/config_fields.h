#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace moiety {

/// The fields of one JSON object, read by name and checked on the way.
///
/// It remembers which fields were asked for, so that refuse_unread() can name those that nobody
/// understood. A field that is absent and one that is null are the same. Every error is
/// kInvalidArgument with the field's name, its value and what is understood instead.
/// One thread at a time; copies share the parsed text, not the memory of what was read.
class ConfigFields {
 public:
  /// Refuses what is no JSON object and an object that has a field twice.
  static Result<ConfigFields> parse(std::string_view json);

  /// Present and not null. Does not count as reading it.
  bool has(std::string_view name) const;

  /// A whole number in [min, max]. Absent: `fallback`, or an error when there is none.
  Result<std::int32_t> integer(std::string_view name,
                               std::int32_t min,
                               std::int32_t max,
                               std::optional<std::int32_t> fallback = {});
  /// A number in [min, max].
  Result<double> number(std::string_view name,
                        double min,
                        double max,
                        std::optional<double> fallback = {});
  Result<bool> flag(std::string_view name, bool fallback);
  Result<std::string> text(std::string_view name, std::string_view fallback);
  /// A list of whole numbers in [min, max], or one of them alone. Absent: an empty list.
  Result<std::vector<std::int32_t>> integers(std::string_view name,
                                             std::int32_t min,
                                             std::int32_t max);
  /// A list of strings. Absent: an empty list.
  Result<std::vector<std::string>> texts(std::string_view name);
  /// An object in this object. Its errors name fields as "rope_parameters.rope_theta".
  Result<std::optional<ConfigFields>> object(std::string_view name);

  /// Counts the field as read, whatever it holds.
  void ignore(std::string_view name) { read_.insert(std::string(name)); }

  /// The error for a field whose value is well formed but not understood:
  /// "hidden_act is "gelu": <expected>".
  Error refuse(std::string_view name, std::string_view expected) const;

  /// Refuses the first field that was not read and holds something: null, false, 0 and empty
  /// strings, lists and objects switch nothing on and pass, and so do names that start with an
  /// underscore (private notes of the program that wrote the file).
  Result<void> refuse_unread() const;

 private:
  struct Document;
  struct Value;
  ConfigFields(std::shared_ptr<const Document> document, std::string prefix);
  Result<void> index(const Value& object);
  /// Null when absent or JSON null; counts as reading the field.
  const Value* take(std::string_view name);
  std::string full_name(std::string_view name) const { return prefix_ + std::string(name); }
  Error missing(std::string_view name, std::string_view expected) const;

  std::shared_ptr<const Document> document_;  // owns what values_ points into
  std::string prefix_;                        // "" or "rope_parameters."
  std::map<std::string, std::shared_ptr<const Value>, std::less<>> values_;
  std::set<std::string, std::less<>> read_;
};

}  // namespace moiety
