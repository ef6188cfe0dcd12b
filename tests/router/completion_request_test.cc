#include "router/completion_request.h"

#include <gmock/gmock.h>

namespace moiety {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using Ids = std::vector<std::int32_t>;

constexpr std::int32_t kVocabulary = 100;

FieldError refused(std::string_view body) {
  const auto parsed = parse_completion_request(body, kVocabulary);
  if (const auto* error = std::get_if<FieldError>(&parsed)) return *error;
  ADD_FAILURE() << body << " was accepted";
  return {};
}

CompletionRequest accepted(std::string_view body) {
  auto parsed = parse_completion_request(body, kVocabulary);
  if (auto* error = std::get_if<FieldError>(&parsed)) {
    ADD_FAILURE() << body << ": " << error->message;
    return {};
  }
  return std::get<CompletionRequest>(parsed);
}

std::string with(std::string_view fields) {
  std::string body = R"({"model": "m", "prompt": "x", )";
  body += fields;
  body += "}";
  return body;
}

/// The name of the first field of `"name": value`.
std::string name_of(std::string_view field) {
  return std::string(field.substr(1, field.find('"', 1) - 1));
}

TEST(CompletionRequest, WhatIsLeftOutIsLeftOpen) {
  const CompletionRequest request = accepted(R"({"model": "m", "prompt": "hello"})");
  ASSERT_EQ(request.prompts.size(), 1u);
  EXPECT_EQ(std::get<std::string>(request.prompts[0]), "hello");
  const GenerationFields& fields = request.fields;
  EXPECT_EQ(fields.model, "m");
  EXPECT_FALSE(fields.max_tokens || fields.temperature || fields.top_p || fields.top_k ||
               fields.min_p || fields.repetition_penalty || fields.seed);
  EXPECT_EQ(fields.n, 1);
  EXPECT_EQ(fields.logprobs, -1);
  EXPECT_FALSE(fields.stream || fields.include_usage || fields.ignore_eos || request.echo);
  EXPECT_TRUE(fields.skip_special_tokens);
}

TEST(CompletionRequest, TakesPromptsInAllForms) {
  const auto prompts = [](std::string_view prompt) {
    std::string body = R"({"model": "m", "prompt": )";
    body += prompt;
    body += "}";
    return body;
  };
  EXPECT_THAT(accepted(prompts("[1, 2, 3]")).prompts, ElementsAre(Prompt(Ids{1, 2, 3})));
  EXPECT_THAT(accepted(prompts(R"(["a"])")).prompts, ElementsAre(Prompt("a")));
  EXPECT_THAT(accepted(prompts(R"(["a", "b"])")).prompts, ElementsAre(Prompt("a"), Prompt("b")));
  EXPECT_THAT(accepted(prompts("[[4, 5]]")).prompts, ElementsAre(Prompt(Ids{4, 5})));
  EXPECT_THAT(accepted(prompts("[[4], [5, 6]]")).prompts,
              ElementsAre(Prompt(Ids{4}), Prompt(Ids{5, 6})));
  for (const char* wrong : {"[1, \"b\"]", "[\"b\", 1]", "[\"b\", [1]]", "[[1], \"b\"]", "[-1]", "5",
                            "[1.5]", "{}", "true", "[[\"a\"]]", "[null]", "[[1.5]]"}) {
    EXPECT_EQ(refused(prompts(wrong)).field, "prompt") << wrong;
  }
  EXPECT_EQ(refused(R"({"model": "m"})").field, "prompt");
  EXPECT_EQ(refused(R"({"model": "m", "prompt": null})").field, "prompt");
}

TEST(CompletionRequest, ReadsEveryFieldThatItKnows) {
  const CompletionRequest request = accepted(with(
      R"("max_tokens": 7, "temperature": 0.5, "top_p": 0.25, "top_k": 5, "min_p": 0.125, "repetition_penalty": 1.5,
         "presence_penalty": -2, "frequency_penalty": 0.5, "logit_bias": {"50": -100, "7": 2.5},
         "seed": 18446744073709551615, "n": 3, "best_of": 3, "logprobs": 5, "stop": ["a", "bc"],
         "stop_token_ids": [4, 99], "include_stop_str_in_output": true, "ignore_eos": true, "min_tokens": 2,
         "skip_special_tokens": false, "stream": true, "stream_options": {"include_usage": true}, "user": "u",
         "metadata": {"a": 1})"));
  const GenerationFields& fields = request.fields;
  EXPECT_EQ(fields.max_tokens, 7);
  EXPECT_EQ(fields.temperature, 0.5f);
  EXPECT_EQ(fields.top_p, 0.25f);
  EXPECT_EQ(fields.top_k, 5);
  EXPECT_EQ(fields.min_p, 0.125f);
  EXPECT_EQ(fields.repetition_penalty, 1.5f);
  EXPECT_EQ(fields.presence_penalty, -2.0f);
  EXPECT_EQ(fields.frequency_penalty, 0.5f);
  EXPECT_THAT(fields.logit_bias, ElementsAre(Pair(7, 2.5f), Pair(50, -100.0f)));
  EXPECT_EQ(fields.seed, 18446744073709551615u);
  EXPECT_EQ(fields.n, 3);
  EXPECT_EQ(fields.logprobs, 5);
  EXPECT_THAT(*fields.stop, ElementsAre("a", "bc"));
  EXPECT_THAT(fields.stop_token_ids, ElementsAre(4, 99));
  EXPECT_EQ(fields.min_tokens, 2);
  EXPECT_TRUE(fields.include_stop_str_in_output && fields.ignore_eos && fields.stream &&
              fields.include_usage);
  EXPECT_FALSE(fields.skip_special_tokens);
  EXPECT_THAT(*accepted(with(R"("stop": "a")")).fields.stop, ElementsAre("a"));
  EXPECT_TRUE(accepted(with(R"("echo": true)")).echo);
  EXPECT_EQ(accepted(with(R"("top_k": -1)")).fields.top_k, 0);
  EXPECT_EQ(accepted(with(R"("max_completion_tokens": 9)")).fields.max_tokens, 9);
  EXPECT_EQ(accepted(with(R"("max_completion_tokens": 9, "max_tokens": 9)")).fields.max_tokens, 9);
  EXPECT_EQ(accepted(with(R"("seed": -1)")).fields.seed, 18446744073709551615u);
}

TEST(CompletionRequest, NeutralValuesOfUnsupportedFieldsPassOthersAreNamed) {
  accepted(
      with(R"("n": 1, "best_of": 1, "echo": false, "logprobs": null, "stop": null, "suffix": "",
                   "presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}, "response_format": null,
                   "stream_options": null)"));
  for (const char* field :
       {"\"suffix\": \"x\"", "\"best_of\": 2", "\"echo\": true, \"logprobs\": 0",
        "\"response_format\": {\"type\": \"json_object\"}", "\"prompt_logprobs\": 1",
        "\"use_beam_search\": true", "\"guided_json\": {}"}) {
    EXPECT_EQ(refused(with(field)).field, name_of(field));
  }
}

TEST(CompletionRequest, NamesWhatIsWrong) {
  for (const char* field : {"\"max_tokens\": 0",
                            "\"max_tokens\": 1.5",
                            "\"max_tokens\": \"5\"",
                            "\"max_tokens\": 99999999999999",
                            "\"max_tokens\": 3, \"max_completion_tokens\": 4",
                            "\"temperature\": -1",
                            "\"temperature\": 2.5",
                            "\"temperature\": \"hot\"",
                            "\"temperature\": true",
                            "\"top_p\": 1.5",
                            "\"top_k\": -2",
                            "\"top_k\": 0.5",
                            "\"min_p\": 1.01",
                            "\"repetition_penalty\": 0",
                            "\"presence_penalty\": 2.1",
                            "\"frequency_penalty\": -3",
                            "\"logit_bias\": [1]",
                            "\"logit_bias\": {\"100\": 1}",
                            "\"logit_bias\": {\"-1\": 1}",
                            "\"logit_bias\": {\"x\": 1}",
                            "\"logit_bias\": {\"5 \": 1}",
                            "\"logit_bias\": {\"\": 1}",
                            "\"logit_bias\": {\"5\": 101}",
                            "\"logit_bias\": {\"5\": null}",
                            "\"logit_bias\": {\"5\": 1, \"05\": 2}",
                            "\"seed\": 1.5",
                            "\"n\": 0",
                            "\"n\": 129",
                            "\"logprobs\": -1",
                            "\"logprobs\": 21",
                            "\"logprobs\": true",
                            "\"stop\": \"\"",
                            "\"stop\": 5",
                            "\"stop\": [\"a\", 5]",
                            "\"stop_token_ids\": [100]",
                            "\"stop_token_ids\": 5",
                            "\"stop_token_ids\": [-1]",
                            "\"min_tokens\": -1",
                            "\"stream\": 1",
                            "\"stream_options\": 1",
                            "\"stream_options\": {\"include_usage\": true}",
                            "\"bananas\": 1"}) {
    const FieldError error = refused(with(field));
    EXPECT_EQ(error.field, name_of(field)) << field;
    EXPECT_THAT(error.message, HasSubstr(name_of(field)));
  }
  EXPECT_EQ(refused(with(R"("stream": true, "stream_options": {"x": true})")).field,
            "stream_options");
  EXPECT_EQ(refused(R"({"prompt": "x"})").field, "model");
  EXPECT_EQ(refused(R"({"model": 5, "prompt": "x"})").field, "model");
  EXPECT_THAT(refused("{").message, HasSubstr("not valid JSON"));
  EXPECT_THAT(refused("[]").message, HasSubstr("JSON object"));
  EXPECT_THAT(refused(std::string(100000, '[')).message,
              HasSubstr("more than 130 objects and arrays"));
}

TEST(CompletionRequest, BoundsWhatOneRequestMayAskFor) {
  std::string stops = "\"x\"";
  for (std::size_t i = 1; i < kMaxStopStrings; ++i) stops += ", \"x\"";
  std::string body = "\"stop\": [";
  EXPECT_EQ(accepted(with(body + stops + "]")).fields.stop->size(), kMaxStopStrings);
  EXPECT_EQ(refused(with(body + stops + ", \"y\"]")).field, "stop");
  std::string prompts = R"({"model": "m", "n": 128, "prompt": ["a")";
  for (int i = 1; i < 8; ++i) prompts += ", \"b\"";
  EXPECT_EQ(accepted(prompts + "]}").prompts.size(), 8u);
  EXPECT_EQ(refused(prompts + ", \"c\"]}").field, "n");
}

TEST(SamplingParams, TakesFieldsThenTheCheckpointsDefaultsThenTheApis) {
  GenerationDefaults defaults;
  defaults.temperature = 0.6f;
  defaults.top_k = 20;
  defaults.repetition_penalty = 1.1f;
  GenerationFields fields;
  fields.top_k = 0;
  fields.presence_penalty = 0.5f;
  fields.min_tokens = 3;
  fields.stop_token_ids = {8};
  const SamplingParams params = sampling_params(fields, defaults, 42, {1, 2});
  EXPECT_EQ(params.temperature, 0.6f);
  EXPECT_EQ(params.top_k, 0) << "an explicit 'all' wins";
  EXPECT_EQ(params.top_p, 1.0f);
  EXPECT_EQ(params.min_p, 0.0f);
  EXPECT_EQ(params.repetition_penalty, 1.1f);
  EXPECT_EQ(params.presence_penalty, 0.5f);
  EXPECT_EQ(params.seed, 42u);
  EXPECT_EQ(params.min_tokens, 3);
  EXPECT_THAT(params.min_tokens_ids, ElementsAre(1, 2, 8));
  EXPECT_EQ(sampling_params({}, {}, 0, {1}).temperature, 1.0f);
}

}  // namespace
}  // namespace moiety
