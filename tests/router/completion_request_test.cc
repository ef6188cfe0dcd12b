#include "router/completion_request.h"

#include <gtest/gtest.h>

namespace moiety {
namespace {

FieldError refused(std::string_view body) {
  const auto parsed = parse_completion_request(body);
  if (const auto* error = std::get_if<FieldError>(&parsed)) return *error;
  ADD_FAILURE() << body << " was accepted";
  return {};
}

CompletionRequest accepted(std::string_view body) {
  auto parsed = parse_completion_request(body);
  if (auto* error = std::get_if<FieldError>(&parsed)) {
    ADD_FAILURE() << body << ": " << error->message;
    return {};
  }
  return std::get<CompletionRequest>(parsed);
}

TEST(CompletionRequest, DefaultsAreThoseOfTheApi) {
  const CompletionRequest request = accepted(R"({"model": "m", "prompt": "hello"})");
  EXPECT_EQ(std::get<std::string>(request.prompt), "hello");
  EXPECT_EQ(request.max_tokens, 16);
  EXPECT_EQ(request.temperature, 1.0f);
  EXPECT_EQ(request.top_p, 1.0f);
  EXPECT_FALSE(request.seed.has_value());
  EXPECT_FALSE(request.stream);
}

TEST(CompletionRequest, TakesPromptsAsTextIdsOrAListOfOne) {
  EXPECT_EQ(std::get<std::vector<std::int32_t>>(
                accepted(R"({"model": "m", "prompt": [1, 2, 3]})").prompt),
            (std::vector<std::int32_t>{1, 2, 3}));
  EXPECT_EQ(std::get<std::string>(accepted(R"({"model": "m", "prompt": ["a"]})").prompt), "a");
  EXPECT_EQ(
      std::get<std::vector<std::int32_t>>(accepted(R"({"model": "m", "prompt": [[4, 5]]})").prompt),
      (std::vector<std::int32_t>{4, 5}));
  EXPECT_EQ(refused(R"({"model": "m", "prompt": ["a", "b"]})").field, "prompt");
  EXPECT_EQ(refused(R"({"model": "m", "prompt": [1, "b"]})").field, "prompt");
  EXPECT_EQ(refused(R"({"model": "m", "prompt": [-1]})").field, "prompt");
  EXPECT_EQ(refused(R"({"model": "m", "prompt": 5})").field, "prompt");
  EXPECT_EQ(refused(R"({"model": "m"})").field, "prompt");
}

TEST(CompletionRequest, ReadsEveryFieldThatItKnows) {
  const CompletionRequest request = accepted(
      R"({"model": "m", "prompt": "x", "max_tokens": 7, "temperature": 0.5, "top_p": 0.25, "seed": 18446744073709551615,
          "stream": true, "stream_options": {"include_usage": true}, "ignore_eos": true, "user": "u"})");
  EXPECT_EQ(request.max_tokens, 7);
  EXPECT_EQ(request.temperature, 0.5f);
  EXPECT_EQ(request.top_p, 0.25f);
  EXPECT_EQ(request.seed, 18446744073709551615u);
  EXPECT_TRUE(request.stream && request.include_usage && request.ignore_eos);
}

TEST(CompletionRequest, NeutralValuesOfUnsupportedFieldsPassOthersAreNamed) {
  accepted(
      R"({"model": "m", "prompt": "x", "n": 1, "best_of": 1, "echo": false, "logprobs": null, "stop": null,
               "presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}, "suffix": null})");
  for (const char* field : {"\"n\": 2", "\"echo\": true", "\"logprobs\": 5",
                            "\"presence_penalty\": 0.5", "\"logit_bias\": {\"5\": 1}",
                            "\"stop\": \"x\"", "\"stop\": [\"x\"]", "\"suffix\": \"x\""}) {
    const std::string name(field + 1, std::string_view(field + 1).find('"'));
    EXPECT_EQ(refused("{\"model\": \"m\", \"prompt\": \"x\", " + std::string(field) + "}").field,
              name);
  }
}

TEST(CompletionRequest, NamesWhatIsWrong) {
  for (const char* field :
       {"\"max_tokens\": 0", "\"max_tokens\": 1.5", "\"max_tokens\": \"5\"", "\"temperature\": -1",
        "\"temperature\": 2.5", "\"temperature\": \"hot\"", "\"top_p\": 1.5", "\"seed\": 1.5",
        "\"stream\": 1", "\"stream_options\": 1", "\"stream_options\": {\"x\": true}",
        "\"bananas\": 1"}) {
    const std::string name(field + 1, std::string_view(field + 1).find('"'));
    const FieldError error =
        refused("{\"model\": \"m\", \"prompt\": \"x\", " + std::string(field) + "}");
    EXPECT_EQ(error.field, name);
    EXPECT_NE(error.message.find(name), std::string::npos);
  }
  EXPECT_EQ(refused(R"({"prompt": "x"})").field, "model");
  EXPECT_NE(refused("{").message.find("not valid JSON"), std::string::npos);
  EXPECT_NE(refused("[]").message.find("JSON object"), std::string::npos);
  EXPECT_NE(refused(std::string(100000, '[')).message.find("not valid JSON"), std::string::npos);
}

}  // namespace
}  // namespace moiety
