#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/result.h"

namespace moiety {

/// The body of POST /v1/completions.
struct CompletionRequest {
  std::string model;
  std::variant<std::string, std::vector<std::int32_t>> prompt;
  std::int32_t max_tokens = 16;
  float temperature = 1.0f;
  float top_p = 1.0f;
  std::optional<std::uint64_t> seed;
  bool stream = false;
  bool include_usage = false;
  bool ignore_eos = false;
};

/// An error that belongs to one field of a request.
struct FieldError {
  std::string field;  ///< empty: the body as a whole
  std::string message;
};

/// Interprets a request body. Fields that are not implemented are accepted at their neutral value
/// (n = 1, logprobs = null, penalties 0, ...) and refused by name at any other; unknown fields are
/// refused by name.
std::variant<CompletionRequest, FieldError> parse_completion_request(std::string_view body);

}  // namespace moiety
