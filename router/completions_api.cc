#include "router/completion_request.h"
#include "router/endpoint.h"

namespace moiety {
namespace {

constexpr std::int32_t kDefaultMaxTokens = 16;  // OpenAI's

/// nullopt: the prompt was refused.
std::optional<TokenizedPrompt> tokenize_prompt(const ApiContext& context,
                                               const PostRequest& post,
                                               const CompletionRequest& request,
                                               const Prompt& prompt) {
  TokenizedPrompt tokenized;
  if (const auto* text = std::get_if<std::string>(&prompt)) {
    auto tokens = tokenize(context, post, "prompt", *text, request.add_special_tokens);
    if (!tokens) return std::nullopt;
    tokenized.tokens = std::move(*tokens);
    if (request.echo) tokenized.echo = *text;
  } else {
    tokenized.tokens = std::get<std::vector<std::int32_t>>(prompt);
    if (request.echo) tokenized.echo = context.tokenizer.decode(tokenized.tokens, false);
  }
  return tokenized;
}

}  // namespace

void post_completions(const ApiContext& context, const PostRequest& post) {
  auto parsed =
      parse_completion_request(post.body, context.engine.model().architecture().vocab_size);
  if (const auto* error = std::get_if<FieldError>(&parsed)) {
    return refuse(context, post, error->field, error->message);
  }
  const auto& request = std::get<CompletionRequest>(parsed);
  const auto deployment = find_deployment(context, post, request.fields.model);
  if (!deployment) return;
  AnswerPlan plan;
  plan.deployment = *deployment;
  plan.prompt_field = "prompt";
  plan.default_max_tokens = kDefaultMaxTokens;
  plan.format = completion_format(context.tokenizer, request.fields.logprobs >= 0);
  for (const Prompt& prompt : request.prompts) {
    auto tokenized = tokenize_prompt(context, post, request, prompt);
    if (!tokenized) return;
    plan.prompts.push_back(std::move(*tokenized));
  }
  start_answer(context, post, request.fields, std::move(plan));
}

}  // namespace moiety
