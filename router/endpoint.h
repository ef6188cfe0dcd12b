#pragma once

#include <memory>
#include <string>
#include <vector>

#include "router/answer.h"
#include "router/api.h"
#include "router/generation_fields.h"

namespace moiety {

/// What the endpoints share.
struct ApiContext {
  Engine& engine;
  const Tokenizer& tokenizer;
  RouterMetrics& metrics;
  const ApiOptions& options;
};

/// One POST request: its body, when it must be over, and where its answer goes.
struct PostRequest {
  std::string body;
  Deadline deadline;
  std::shared_ptr<http::Responder> responder;
};

void post_completions(const ApiContext& context, const PostRequest& post);
void post_chat_completions(const ApiContext& context, const PostRequest& post);

http::Response model_not_found(const ApiContext& context, const std::string& model);

// --- For the endpoints.

/// Answers 400 for a field and counts the refusal.
void refuse(const ApiContext& context,
            const PostRequest& post,
            std::string_view field,
            std::string_view message,
            std::string_view code = "invalid_value");

/// The deployment that `model` names: "" for the full model. nullopt: it was answered with 404.
std::optional<std::string> find_deployment(const ApiContext& context,
                                           const PostRequest& post,
                                           const std::string& model);

struct TokenizedPrompt {
  std::vector<std::int32_t> tokens;
  std::string echo;  ///< comes before each answer
};

struct AnswerPlan {
  std::string deployment;
  std::vector<TokenizedPrompt> prompts;  ///< each gets fields.n answers
  std::string_view prompt_field;         ///< what errors about the prompt name
  std::unique_ptr<AnswerFormat> format;
  /// For requests that do not say: as many tokens, or (0) as the context and max_new_tokens allow.
  std::int32_t default_max_tokens = 0;
};

/// Token ids of a text of the request. nullopt: it was refused, for `field`, as one that has more
/// tokens than the model's context or that the tokenizer gave up on.
std::optional<std::vector<std::int32_t>> tokenize(const ApiContext& context,
                                                  const PostRequest& post,
                                                  std::string_view field,
                                                  std::string_view text,
                                                  bool add_special_tokens);

/// Checks the number of choices and the prompts' lengths, and starts the answer, or refuses.
void start_answer(const ApiContext& context,
                  const PostRequest& post,
                  const GenerationFields& fields,
                  AnswerPlan plan);

}  // namespace moiety
