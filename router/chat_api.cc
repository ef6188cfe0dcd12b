#include "router/chat_request.h"
#include "router/endpoint.h"

namespace moiety {

void post_chat_completions(const ApiContext& context, const PostRequest& post) {
  auto parsed = parse_chat_request(post.body, context.engine.model().architecture().vocab_size);
  if (const auto* error = std::get_if<FieldError>(&parsed)) {
    return refuse(context, post, error->field, error->message);
  }
  const auto& request = std::get<ChatRequest>(parsed);
  const auto deployment = find_deployment(context, post, request.fields.model);
  if (!deployment) return;
  const std::optional<ApiOptions::Chat>& tool_chat = context.options.tool_chat;
  const bool for_tools = tool_chat && request.variables.contains("tools");
  const ApiOptions::Chat& chat = for_tools ? *tool_chat : context.options.chat;
  if (!chat.chat_template) {
    return refuse(context, post, for_tools ? "tools" : "messages", chat.missing,
                  "chat_template_missing");
  }
  const Result<std::string> text = render_chat(*chat.chat_template, request);
  if (!text) {
    const bool refused = text.error().code == ErrorCode::kInvalidArgument ||
                         text.error().code == ErrorCode::kResourceExhausted;
    if (refused) return refuse(context, post, "messages", text.error().message);
    return post.responder->respond(error_response(text.error()));
  }
  auto tokens = tokenize(context, post, "messages", *text, request.add_special_tokens);
  if (!tokens) return;
  AnswerPlan plan;
  plan.deployment = *deployment;
  plan.prompt_field = "messages";
  plan.format = chat_format(context.tokenizer, request.fields.logprobs >= 0);
  plan.prompts.push_back({std::move(*tokens), ""});
  start_answer(context, post, request.fields, std::move(plan));
}

}  // namespace moiety
