#include "router/completion_request.h"

#include <fmt/format.h>

#include <boost/json.hpp>

namespace moiety {
namespace json = boost::json;
namespace {

constexpr const char* kPromptForms =
    "prompt must be a string, an array of token ids, or an array of strings or of such arrays";

std::optional<Prompt> prompt_of(const json::value& value) {
  if (value.is_string()) return std::string(value.get_string());
  if (!value.is_array()) return std::nullopt;
  auto ids = token_ids(value.get_array());
  if (!ids) return std::nullopt;
  return std::move(*ids);
}

void read_prompts(FieldReader& reader, CompletionRequest& request) {
  const json::value* value = reader.find("prompt");
  if (value == nullptr) {
    return reader.fail("prompt", "prompt is missing: give a string or an array of token ids");
  }
  const bool is_list =
      value->is_array() && !value->get_array().empty() && !value->get_array()[0].is_int64();
  if (!is_list) {
    auto prompt = prompt_of(*value);
    if (!prompt) return reader.fail("prompt", kPromptForms);
    request.prompts.push_back(std::move(*prompt));
    return;
  }
  for (const json::value& entry : value->get_array()) {
    auto prompt = prompt_of(entry);
    const bool alike =
        request.prompts.empty() || (prompt && prompt->index() == request.prompts[0].index());
    if (!prompt || !alike) {
      return reader.fail("prompt", kPromptForms);
    }
    request.prompts.push_back(std::move(*prompt));
  }
}

}  // namespace

std::variant<CompletionRequest, FieldError> parse_completion_request(std::string_view body,
                                                                     std::int32_t vocab_size) {
  json::value parsed;
  if (auto error = parse_body(body, parsed)) return *std::move(error);
  FieldReader reader(parsed.get_object());
  CompletionRequest request;
  request.fields = read_generation_fields(reader, vocab_size);
  read_prompts(reader, request);
  reader.read("logprobs", 0, kMaxLogprobs, request.fields.logprobs);
  reader.read("echo", request.echo);
  reader.read("add_special_tokens", request.add_special_tokens);
  if (request.echo && request.fields.logprobs >= 0) {
    reader.fail("echo",
                "echo with logprobs is not supported: log-probabilities are given for "
                "generated tokens only");
  }
  const std::int32_t n = request.fields.n;
  std::int32_t best_of = n;
  reader.read("best_of", 1, kMaxN, best_of);
  if (best_of != n) {
    reader.fail("best_of", "best_of is not supported beside n: leave it out and choose yourself");
  }
  if (request.prompts.size() * static_cast<std::size_t>(n) > kMaxChoices) {
    reader.fail("n", fmt::format("{} prompts with n = {} are more than {} choices: send several "
                                 "requests",
                                 request.prompts.size(), n, kMaxChoices));
  }
  reader.refuse_unless_neutral("suffix", "", "only what follows a prompt is generated");
  reader.refuse_unless_neutral("response_format", "", "only free text is generated");
  reader.refuse_unread();
  if (reader.error()) return *reader.error();
  return request;
}

}  // namespace moiety
