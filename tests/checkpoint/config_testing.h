#pragma once

#include <string>
#include <string_view>

#include "checkpoint/architecture.h"
#include "common/log.h"
#include "tests/checkpoint/checkpoint_testing.h"

namespace moiety {

inline std::string config_of(std::string_view name) {
  return read_text(fixture(name) / "config.json");
}

inline Architecture parse(std::string_view config, bool pruned = false) {
  auto model = parse_architecture(config, pruned);
  EXPECT_TRUE(model) << model.error().message;
  return model ? *model : Architecture{};
}

/// The configuration with `fields` ("\"name\": value, ...") in front of the others.
inline std::string with(const std::string& config, const std::string& fields) {
  return replaced(config, "{", "{" + fields + ",");
}

/// "name": value
inline std::string spelled(std::string_view name, std::string_view value) {
  std::string text = "\"";
  return text.append(name).append("\": ").append(value);
}

/// The configuration with the first line that holds `field` removed.
inline std::string without(std::string config, const std::string& field) {
  const std::size_t begin = config.find("  \"" + field + "\"");
  EXPECT_NE(begin, config.npos) << field;
  config.erase(begin, config.find('\n', begin) + 1 - begin);
  const std::size_t last = config.find_last_not_of("}\n ");
  return config[last] == ',' ? config.erase(last, 1) : config;
}

/// What `act` writes to the log.
template <class Act>
std::string logged(const Act& act) {
  init_logging("test");
  testing::internal::CaptureStderr();
  act();
  return testing::internal::GetCapturedStderr();
}

/// Refused, and the message names the field and its value.
inline void expect_refused(const std::string& config,
                           const std::string& field,
                           const std::string& value) {
  SCOPED_TRACE(field + " " + value);
  expect_error(parse_architecture(config, false), ErrorCode::kInvalidArgument,
               testing::HasSubstr(value.empty() ? field : field + " is " + value));
}

}  // namespace moiety
