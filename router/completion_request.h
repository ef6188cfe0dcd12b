#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "router/field_reader.h"
#include "router/generation_fields.h"

namespace moiety {

/// Text, or token ids that are taken as they are.
using Prompt = std::variant<std::string, std::vector<std::int32_t>>;

/// The body of POST /v1/completions.
struct CompletionRequest {
  GenerationFields fields;
  std::vector<Prompt> prompts;     ///< at least one; each gets fields.n answers
  bool echo = false;               ///< the prompt's text comes first
  bool add_special_tokens = true;  ///< around prompts that are text
};

/// Interprets a request body. Fields that are not implemented are accepted where they change
/// nothing and refused by name elsewhere; unknown fields are refused by name.
std::variant<CompletionRequest, FieldError> parse_completion_request(std::string_view body,
                                                                     std::int32_t vocab_size);

}  // namespace moiety
