#include "router/chat_request.h"

#include <gmock/gmock.h>

#include <boost/json.hpp>

#include "model/chat_template.h"

namespace moiety {
namespace {

namespace json = boost::json;
using ::testing::HasSubstr;

FieldError refused(std::string_view body) {
  const auto parsed = parse_chat_request(body, 100);
  if (const auto* error = std::get_if<FieldError>(&parsed)) return *error;
  ADD_FAILURE() << body << " was accepted";
  return {};
}

ChatRequest accepted(std::string_view body) {
  auto parsed = parse_chat_request(body, 100);
  if (auto* error = std::get_if<FieldError>(&parsed)) {
    ADD_FAILURE() << body << ": " << error->message;
    return {};
  }
  return std::get<ChatRequest>(parsed);
}

std::string with_messages(std::string_view messages) {
  std::string body = R"({"model": "m", "messages": )";
  body += messages;
  body += "}";
  return body;
}

std::string with(std::string_view fields) {
  std::string body = R"({"model": "m", "messages": [{"role": "user", "content": "hi"}], )";
  body += fields;
  body += "}";
  return body;
}

TEST(ChatRequest, JsonMayBeNestedAsDeepAsTheLimitAndNoDeeper) {
  const auto nested = [](std::size_t depth) {
    return R"({"x": )" + std::string(depth - 1, '[') + std::string(depth - 1, ']') + "}";
  };
  const auto call_with = [](std::string arguments) {
    return with_messages(
        R"([{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [{"function": {"arguments": )" +
        json::serialize(json::string(arguments)) + "}}]}]");
  };
  const auto body_with = [&](std::size_t depth) {  // body, list of tools and tool are three
    return with(R"("tools": [{"type": "function", "function": )" + nested(depth - 3) + "}]");
  };
  accepted(call_with(nested(kMaxJsonDepth)));
  accepted(body_with(kMaxJsonDepth));
  for (const std::string& body :
       {call_with(nested(kMaxJsonDepth + 1)), body_with(kMaxJsonDepth + 1)}) {
    EXPECT_THAT(refused(body).message,
                HasSubstr("has more than 130 objects and arrays inside of one another"));
  }
}

TEST(ChatRequest, HandsMessagesToTheTemplate) {
  const ChatRequest request = accepted(with_messages(
      R"([{"role": "developer", "content": "be brief"}, {"role": "system", "content": [{"type": "text", "text": "a"},
          {"type": "text", "text": "b"}]}, {"role": "user", "content": "hi", "name": "Ann"},
          {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function",
           "function": {"name": "f", "arguments": "{\"x\": [1, 2]}"}}]},
          {"role": "tool", "tool_call_id": "1", "content": "3"}, {"role": "assistant"}])"));
  EXPECT_EQ(
      request.variables.at("messages"),
      json::parse(
          R"([{"role": "developer", "content": "be brief"}, {"role": "system", "content": "a\nb"},
          {"role": "user", "content": "hi", "name": "Ann"},
          {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function",
           "function": {"name": "f", "arguments": {"x": [1, 2]}}}]},
          {"role": "tool", "tool_call_id": "1", "content": "3"}, {"role": "assistant", "content": ""}])"));
  EXPECT_EQ(request.variables.at("add_generation_prompt"), json::value(true));
  EXPECT_EQ(request.variables.size(), 2u);
}

TEST(ChatRequest, NamesTheMessageThatIsWrong) {
  const auto message = [](std::string_view what) {
    std::string list = R"([{"role": "user", "content": "hi"}, )";
    list += what;
    list += "]";
    return refused(with_messages(list));
  };
  for (const char* wrong :
       {"5", "{}", R"({"role": "robot", "content": "x"})", R"({"role": 5, "content": "x"})",
        R"({"role": "user"})", R"({"role": "user", "content": 5})",
        R"({"role": "user", "content": null})", R"({"role": "user", "content": ["x"]})",
        R"({"role": "user", "content": [{"text": "x"}]})",
        R"({"role": "user", "content": [{"type": "text"}]})",
        R"({"role": "assistant", "tool_calls": {}})",
        R"({"role": "assistant", "tool_calls": [{}]})",
        R"({"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]})",
        R"({"role": "assistant", "tool_calls": [{"function": {"arguments": "[1]"}}]})"}) {
    const FieldError error = message(wrong);
    EXPECT_EQ(error.field, "messages");
    EXPECT_THAT(error.message, HasSubstr("messages[1]")) << wrong;
  }
  const FieldError image = message(
      R"({"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "u"}}]})");
  EXPECT_THAT(image.message, HasSubstr("messages[1].content[1]"));
  EXPECT_THAT(image.message, HasSubstr("image_url"));
  for (const char* wrong : {"[]", "{}", "null", "\"hi\""}) {
    EXPECT_EQ(refused(with_messages(wrong)).field, "messages") << wrong;
  }
  EXPECT_EQ(refused(R"({"model": "m"})").field, "messages");
}

TEST(ChatRequest, ReadsTools) {
  const char* tools =
      R"("tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}])";
  EXPECT_EQ(accepted(with(tools)).variables.at("tools").as_array().size(), 1u);
  std::string chosen = tools;
  EXPECT_TRUE(accepted(with(chosen + R"(, "tool_choice": "auto")")).variables.contains("tools"));
  EXPECT_FALSE(accepted(with(chosen + R"(, "tool_choice": "none")")).variables.contains("tools"));
  EXPECT_FALSE(accepted(with(R"("tools": [])")).variables.contains("tools"));
  EXPECT_EQ(refused(with(chosen + R"(, "tool_choice": "required")")).field, "tool_choice");
  EXPECT_EQ(
      refused(with(chosen + R"(, "tool_choice": {"type": "function", "function": {"name": "f"}})"))
          .field,
      "tool_choice");
  for (const char* wrong :
       {"{}", "[5]", R"([{"type": "retrieval"}])", R"([{"type": "function"}])"}) {
    std::string field = "\"tools\": ";
    field += wrong;
    EXPECT_EQ(refused(with(field)).field, "tools") << wrong;
  }
}

TEST(ChatRequest, ReadsWhatTheTemplateIsTold) {
  const ChatRequest request = accepted(with(
      R"("add_generation_prompt": false, "reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": false})"));
  EXPECT_EQ(request.variables.at("add_generation_prompt"), json::value(false));
  EXPECT_EQ(request.variables.at("reasoning_effort"), json::value("low"));
  EXPECT_EQ(request.variables.at("enable_thinking"), json::value(false));
  const ChatRequest goes_on = accepted(with(R"("continue_final_message": true)"));
  EXPECT_TRUE(goes_on.continue_final_message);
  EXPECT_EQ(goes_on.variables.at("add_generation_prompt"), json::value(false));
  EXPECT_EQ(refused(with(R"("continue_final_message": true, "add_generation_prompt": true)")).field,
            "continue_final_message");
  EXPECT_EQ(refused(with(R"("chat_template_kwargs": {"messages": []})")).field,
            "chat_template_kwargs");
  EXPECT_EQ(refused(with(R"("chat_template_kwargs": 5)")).field, "chat_template_kwargs");
  EXPECT_EQ(refused(with(R"("reasoning_effort": 5)")).field, "reasoning_effort");
}

TEST(ChatRequest, ReadsTheOtherFields) {
  const ChatRequest request = accepted(with(
      R"("logprobs": true, "top_logprobs": 3, "max_completion_tokens": 5, "response_format": {"type": "text"},
         "modalities": ["text"], "store": false, "parallel_tool_calls": true, "service_tier": "auto",
         "function_call": "none", "functions": [])"));
  EXPECT_EQ(request.fields.logprobs, 3);
  EXPECT_EQ(request.fields.max_tokens, 5);
  EXPECT_EQ(accepted(with(R"("logprobs": true)")).fields.logprobs, 0);
  EXPECT_EQ(accepted(with(R"("logprobs": false)")).fields.logprobs, -1);
  EXPECT_EQ(accepted(with(R"("logprobs": false, "top_logprobs": 0)")).fields.logprobs, -1);
  for (const auto& [field, name] :
       {std::pair(R"("top_logprobs": 3)", "top_logprobs"),
        std::pair(R"("logprobs": 3)", "logprobs"),
        std::pair(R"("logprobs": true, "top_logprobs": 21)", "top_logprobs"),
        std::pair(R"("response_format": {"type": "json_object"})", "response_format"),
        std::pair(R"("modalities": ["audio"])", "modalities"),
        std::pair(R"("audio": {"voice": "x"})", "audio"),
        std::pair(R"("functions": [{"name": "f"}])", "functions"),
        std::pair(R"("prompt": "x")", "prompt"),
        std::pair(R"("web_search_options": {"a": 1})", "web_search_options"),
        std::pair(R"("echo": true)", "echo"), std::pair(R"("store": true)", "store"),
        std::pair(R"("n": 0)", "n"), std::pair(R"("bananas": 1)", "bananas")}) {
    EXPECT_EQ(refused(with(field)).field, name) << field;
  }
}

class RenderChat : public ::testing::Test {
 protected:
  static std::string render(std::string_view source, std::string_view body) {
    const auto chat_template = ChatTemplate::parse(source);
    if (!chat_template) return "template: " + chat_template.error().message;
    const auto text = render_chat(*chat_template, accepted(body));
    return text ? *text : "error: " + text.error().message;
  }
  static constexpr std::string_view kSource =
      "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if "
      "add_generation_prompt %}<assistant>{% endif %}";
  static constexpr std::string_view kTrimming =
      "{% for m in messages %}<{{ m.content | trim }}>{% endfor %}";

  static std::string continuing(std::string_view last) {
    std::string body =
        R"({"model": "m", "continue_final_message": true, "messages": [{"role": "user", "content": "hi"},
                           {"role": "assistant", "content": ")";
    body += last;
    body += "\"}]}";
    return body;
  }
};

TEST_F(RenderChat, BeginsAnAnswer) {
  EXPECT_EQ(render(kSource, with(R"("n": 1)")), "<user>hi</><assistant>");
  EXPECT_EQ(render(kSource, with(R"("add_generation_prompt": false)")), "<user>hi</>");
}

TEST_F(RenderChat, PrintsNumbersAsTheyWereGiven) {
  const std::string_view numbers = "[-481.29197134398476, 7e+180, 9.779563142955495e-18, 0.1, 1.0]";
  const std::string source = "{{ messages[0].tool_calls[0].function.arguments.x }}{{ x }}";
  const std::string call =
      R"([{"role": "assistant", "tool_calls": [{"function": {"arguments": "{\"x\": )" +
      std::string(numbers) + R"(}"}}]}], "chat_template_kwargs": {"x": )" + std::string(numbers) +
      "}";
  EXPECT_EQ(render(source, with_messages(call)), std::string(numbers) + std::string(numbers));
}

TEST_F(RenderChat, GoesOnWithTheLastMessage) {
  EXPECT_EQ(render(kSource, continuing("hi there")), "<user>hi</><assistant>hi there");
  EXPECT_EQ(render(kSource, continuing("The answer: ")), "<user>hi</><assistant>The answer: ");
  EXPECT_EQ(render(kTrimming, continuing(" The answer: ")), "<hi><The answer:");
  // What the template writes behind the message may hold its content, too.
  EXPECT_EQ(
      render("{% for m in messages %}{{ m.content | trim }} <|end|>{% endfor %}", continuing("e ")),
      "hi <|end|>e");
  EXPECT_THAT(render(kSource, continuing("  ")), HasSubstr("no content"));
  EXPECT_THAT(render("{{ messages[0].content }}", continuing("other")), HasSubstr("does not show"));
}

TEST_F(RenderChat, PassesOnWhatTheTemplateRefuses) {
  EXPECT_THAT(render("{{ raise_exception('only users here') }}", with(R"("n": 1)")),
              HasSubstr("only users here"));
}

}  // namespace
}  // namespace moiety
