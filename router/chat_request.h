#pragma once

#include <boost/json/object.hpp>
#include <string>
#include <string_view>
#include <variant>

#include "router/field_reader.h"
#include "router/generation_fields.h"

namespace moiety {

class ChatTemplate;

/// The body of POST /v1/chat/completions.
struct ChatRequest {
  GenerationFields fields;
  /// What the chat template sees: messages (every content a string; arguments of tool calls as
  /// objects), tools, add_generation_prompt, and what chat_template_kwargs adds.
  boost::json::object variables;
  /// The answer goes on with the last message instead of beginning a new one.
  bool continue_final_message = false;
  /// Adds the tokenizer's special tokens to what the template wrote; templates write them
  /// themselves.
  bool add_special_tokens = false;
};

/// The field `messages`, checked, as ChatRequest::variables has it.
void read_messages(FieldReader& reader, boost::json::object& variables);

/// Interprets a request body; as parse_completion_request does.
std::variant<ChatRequest, FieldError> parse_chat_request(std::string_view body,
                                                         std::int32_t vocab_size);

/// The prompt's text: the template's, cut after the last message's content if that is to be
/// continued. kInvalidArgument: the template refused the messages, or does not show the last one.
Result<std::string> render_chat(const ChatTemplate& chat_template, const ChatRequest& request);

}  // namespace moiety
