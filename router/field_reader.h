#pragma once

#include <boost/json/fwd.hpp>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace moiety {

/// An error that belongs to one field of a request.
struct FieldError {
  std::string field;  ///< empty: the body as a whole
  std::string message;
};

/// Reads the fields of one JSON object by name, remembers the first error and which fields were
/// asked for. A field that is absent and one that is null are the same. Errors name the field and
/// what is understood.
class FieldReader {
 public:
  /// `object` outlives the reader.
  explicit FieldReader(const boost::json::object& object) : object_(object) {}

  /// Null when absent or JSON null.
  const boost::json::value* find(std::string_view field);

  // Each leaves `out` alone when the field is absent or wrong.
  void read(std::string_view field, bool& out);
  void read(std::string_view field, std::string& out);
  /// A number in [min, max].
  void read(std::string_view field, double min, double max, std::optional<float>& out);
  void read(std::string_view field, double min, double max, float& out);
  /// A whole number in [min, max].
  void read(std::string_view field,
            std::int64_t min,
            std::int64_t max,
            std::optional<std::int32_t>& out);
  void read(std::string_view field, std::int64_t min, std::int64_t max, std::int32_t& out);

  /// Fields that change nothing here, whatever they hold.
  void ignore(std::initializer_list<std::string_view> fields);
  /// A field that is not implemented: accepted where it switches nothing on (null, false, 0, empty
  /// strings, lists and objects, and the number or text `neutral`), refused by name with `remedy`
  /// elsewhere.
  void refuse_unless_neutral(std::string_view field,
                             std::string_view neutral,
                             std::string_view remedy);
  /// Refuses the first field that nobody asked for.
  void refuse_unread();

  void fail(std::string_view field, std::string message);
  const std::optional<FieldError>& error() const { return error_; }

 private:
  const boost::json::object& object_;
  std::set<std::string, std::less<>> read_;
  std::optional<FieldError> error_;
};

/// Token ids: whole numbers of at least 0. nullopt when one is something else.
std::optional<std::vector<std::int32_t>> token_ids(const boost::json::array& array);

/// How many objects and arrays may stand inside of one another where a request holds JSON.
inline constexpr std::size_t kMaxJsonDepth = 130;

/// Parses JSON of a request. What is wrong comes back as what follows a name of the text: "is not
/// valid JSON: ...".
std::optional<std::string> parse_json(std::string_view text, boost::json::value& out);

/// The object that a request body is; FieldError without a field when it is none.
std::optional<FieldError> parse_body(std::string_view body, boost::json::value& out);

}  // namespace moiety
