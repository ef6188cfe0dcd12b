#include "router/endpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "common/deployment_name.h"

namespace moiety {
namespace {

std::uint64_t random_seed() {
  thread_local std::mt19937_64 generator{std::random_device{}()};
  return generator();
}

/// Tokens for the answer; nullopt: the prompt was refused.
std::optional<std::int32_t> tokens_to_generate(const ApiContext& context,
                                               const PostRequest& post,
                                               const GenerationFields& fields,
                                               const AnswerPlan& plan,
                                               std::size_t prompt_tokens) {
  const std::int64_t window = context.engine.model().architecture().max_positions;
  const auto prompt = static_cast<std::int64_t>(prompt_tokens);
  std::int64_t wanted = fields.max_tokens.value_or(plan.default_max_tokens);
  if (wanted == 0) {
    wanted = std::min(window, context.engine.kv_cache_tokens()) - prompt;
    if (context.options.defaults.max_new_tokens) {
      wanted = std::min<std::int64_t>(wanted, *context.options.defaults.max_new_tokens);
    }
    wanted = std::max<std::int64_t>(wanted, 1);
  }
  if (prompt + wanted > window) {
    refuse(context, post, plan.prompt_field,
           fmt::format("the prompt has {} tokens and {} are to be generated: together {}, and the "
                       "model's context is {} tokens",
                       prompt, wanted, prompt + wanted, window),
           "context_length_exceeded");
    return std::nullopt;
  }
  if (fields.min_tokens > wanted) {
    refuse(context, post, "min_tokens",
           fmt::format("min_tokens is {}, but no more than {} tokens are generated",
                       fields.min_tokens, wanted));
    return std::nullopt;
  }
  return static_cast<std::int32_t>(wanted);
}

}  // namespace

http::Response model_not_found(const ApiContext& context, const std::string& model) {
  std::string names;
  for (const Engine::DeploymentInfo& info : context.engine.deployments()) {
    if (info.draining) continue;
    if (!names.empty()) names += ", ";
    names += served_as(context.options.served_name, info.name);
  }
  return error_response(
      404,
      fmt::format("the model '{}' is not served here; {}", model,
                  names.empty() ? "no model is deployed now" : "served are: " + names),
      "model", "model_not_found");
}

void refuse(const ApiContext& context,
            const PostRequest& post,
            std::string_view field,
            std::string_view message,
            std::string_view code) {
  context.metrics.on_refused(context.options.served_name, "invalid_argument");
  post.responder->respond(error_response(400, message, field, code));
}

std::optional<std::string> find_deployment(const ApiContext& context,
                                           const PostRequest& post,
                                           const std::string& model) {
  const std::string& served = context.options.served_name;
  if (model == served) return std::string();
  const std::size_t prefix = served.size() + 1;
  if (model.size() > prefix && model.starts_with(served) && model[served.size()] == ':') {
    return model.substr(prefix);
  }
  context.metrics.on_refused(served, "not_found");
  post.responder->respond(model_not_found(context, model));
  return std::nullopt;
}

std::optional<std::vector<std::int32_t>> tokenize(const ApiContext& context,
                                                  const PostRequest& post,
                                                  std::string_view field,
                                                  std::string_view text,
                                                  bool add_special_tokens) {
  const auto window = static_cast<std::size_t>(context.engine.model().architecture().max_positions);
  auto tokens = context.tokenizer.encode(text, add_special_tokens, window);
  if (tokens) return std::move(*tokens);
  if (tokens.error().code == ErrorCode::kInvalidArgument) {
    refuse(context, post, field,
           fmt::format("the prompt has more than {} tokens, the model's context", window),
           "context_length_exceeded");
  } else {
    refuse(context, post, field, tokens.error().message);
  }
  return std::nullopt;
}

void start_answer(const ApiContext& context,
                  const PostRequest& post,
                  const GenerationFields& fields,
                  AnswerPlan plan) {
  const std::size_t num_choices = plan.prompts.size() * static_cast<std::size_t>(fields.n);
  if (num_choices > context.engine.most_requests()) {
    return refuse(
        context, post, "n",
        fmt::format("{} prompts with n = {} are {} choices, and this router takes {} at "
                    "once (--max-num-seqs and --max-queue): send several requests",
                    plan.prompts.size(), fields.n, num_choices, context.engine.most_requests()));
  }
  const std::vector<std::int32_t>& eos = context.engine.model().architecture().eos_ids;
  // Each prompt's choices are those that it would get alone.
  const std::uint64_t seed = fields.seed.value_or(random_seed());
  std::vector<ChoiceRequest> choices;
  for (TokenizedPrompt& prompt : plan.prompts) {
    const auto max_tokens = tokens_to_generate(context, post, fields, plan, prompt.tokens.size());
    if (!max_tokens) return;
    for (std::int32_t i = 0; i < fields.n; ++i) {
      ChoiceRequest choice;
      choice.generate.deployment = plan.deployment;
      choice.generate.prompt = prompt.tokens;
      choice.generate.sampling = sampling_params(fields, context.options.defaults,
                                                 seed + static_cast<std::uint64_t>(i), eos);
      choice.generate.max_tokens = *max_tokens;
      if (!fields.ignore_eos) choice.generate.stop_ids = eos;
      choice.generate.deadline = post.deadline;
      choice.echo = prompt.echo;
      choice.first_of_prompt = i == 0;
      choices.push_back(std::move(choice));
    }
  }
  AnswerOptions options;
  options.model = fields.model;
  options.deployment = plan.deployment;
  options.stream = fields.stream;
  options.include_usage = fields.include_usage;
  options.text = {.stop = stop_strings(fields, context.options.defaults),
                  .include_stop = fields.include_stop_str_in_output,
                  .stop_token_ids = fields.stop_token_ids,
                  .min_tokens = fields.min_tokens,
                  .skip_special = fields.skip_special_tokens,
                  .keep_tokens = fields.logprobs >= 0};
  const auto started = Answer::start(context.engine, context.tokenizer, std::move(plan.format),
                                     std::move(options), std::move(choices), post.responder);
  if (started) return;
  const Error& error = started.error();
  // A name that is not served is no label: whoever asks could make as many series as they like.
  const bool unknown = error.code == ErrorCode::kNotFound;
  context.metrics.on_refused(unknown ? context.options.served_name : fields.model,
                             error_info(error.code).name);
  if (unknown) return post.responder->respond(model_not_found(context, fields.model));
  if (error.code == ErrorCode::kInvalidArgument) {
    return post.responder->respond(
        error_response(400, error.message, plan.prompt_field, "invalid_value"));
  }
  post.responder->respond(error_response(error));
}

}  // namespace moiety
