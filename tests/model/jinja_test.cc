// The language, where comparing with jinja2 (tests/golden/template_test.py) does not reach:
// messages, bounds, threads.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "model/chat_template.h"

namespace moiety {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

Result<std::string> render(std::string_view source, std::string_view variables = "{}") {
  MOIETY_ASSIGN(const ChatTemplate parsed, ChatTemplate::parse(source));
  return parsed.render(boost::json::parse(variables).as_object());
}

std::string text_of(std::string_view source, std::string_view variables = "{}") {
  const auto text = render(source, variables);
  return text ? *text : "error: " + text.error().message;
}

std::string parse_error(std::string_view source) {
  const auto parsed = ChatTemplate::parse(source);
  if (parsed) return "accepted";
  EXPECT_EQ(parsed.error().code, ErrorCode::kInvalidArgument);
  return parsed.error().message;
}

TEST(Jinja, RendersAConversation) {
  constexpr std::string_view kChatMl =
      "{%- for m in messages %}\n"
      "    {{- '<|im_start|>' + m.role + '\\n' + m.content | trim + '<|im_end|>\\n' }}\n"
      "{%- endfor %}\n"
      "{%- if add_generation_prompt %}\n"
      "    {{- '<|im_start|>assistant\\n' }}\n"
      "{%- endif %}\n";
  EXPECT_EQ(
      text_of(
          kChatMl,
          R"({"messages": [{"role": "user", "content": " Grüezi "}], "add_generation_prompt": true})"),
      "<|im_start|>user\nGrüezi<|im_end|>\n<|im_start|>assistant\n");
}

TEST(Jinja, PrintsLikePython) {
  EXPECT_EQ(
      text_of("{{ x }}",
              R"({"x": [1, 1.0, true, null, "it's", {"a": "\n"}, 18446744073709551615, 1e16]})"),
      R"([1, 1.0, True, None, "it's", {'a': '\n'}, 18446744073709551615, 1e+16])");
}

TEST(Jinja, KeepsVariablesInTheirScopes) {
  // A loop's assignments end with the round; namespaces carry values out.
  EXPECT_EQ(text_of("{% set n = 0 %}{% set ns = namespace(n=0) %}"
                    "{% for i in range(3) %}{% set n = n + 1 %}{% set ns.n = ns.n + 1 %}{% endfor "
                    "%}{{ n }}{{ ns.n }}"),
            "03");
  // Jinja runs `else` when no round came to the end of the body, even after `break`.
  EXPECT_EQ(text_of("{% for x in [1] %}{% break %}{% else %}else{% endfor %}"), "else");
}

TEST(Jinja, NamesWhatItRefusesWithItsLine) {
  EXPECT_EQ(parse_error("a\n{% include 'x' %}"),
            "line 2: the tag 'include' is not supported in chat templates here");
  EXPECT_EQ(parse_error("\n\n{{ x | wordwrap }}"),
            "line 3: the filter 'wordwrap' is not supported in chat templates here");
  EXPECT_EQ(parse_error("{{ x | nope }}"), "line 1: unknown filter 'nope'");
  EXPECT_EQ(parse_error("{{ x is nope }}"), "line 1: unknown test 'nope'");
  EXPECT_EQ(parse_error("{% nope %}"), "line 1: unknown tag 'nope'");
  EXPECT_THAT(parse_error("{% for x in y recursive %}{% endfor %}"), HasSubstr("a recursive loop"));
  EXPECT_EQ(parse_error("{% if x %}\n\n"), "line 2: the template ends where 'endif' is expected");
  EXPECT_THAT(parse_error("{{ 'a"), HasSubstr("closing quote"));
  for (std::string_view end : {"{{ 0", "{{ 0x", "{{ 1.", "{{ 1e", "{{ 1e+", "{{ a.", "{{ 'a\\",
                               "{{ -", "{%", "{%-", "{#", "{#-"}) {
    EXPECT_THAT(parse_error(end), StartsWith("line 1: ")) << end;
  }
  EXPECT_THAT(parse_error("{{ 170141183460469231731687303715884105728 }}"),
              HasSubstr("beyond 127 bits"));
  // Where an `if` may keep an unknown filter from being reached, Jinja only fails when it is.
  EXPECT_EQ(text_of("{% if x %}{{ x | nope }}{% endif %}ok"), "ok");
  EXPECT_EQ(text_of("{% if x %}\n{{ x | nope }}{% endif %}", R"({"x": 1})"),
            "error: line 2: unknown filter 'nope'");
}

TEST(Jinja, FailsWithLineAndReason) {
  EXPECT_EQ(text_of("\n{{ raise_exception('Roles must alternate!') }}"),
            "error: line 2: Roles must alternate!");
  EXPECT_EQ(text_of("{{ x.y }}"), "error: line 1: 'x' is undefined");
  EXPECT_EQ(text_of("{{ x.y.z }}", R"({"x": {}})"),
            "error: line 1: 'dict object' has no attribute 'y'");
  EXPECT_THAT(text_of("{{ 'a' + 1 }}"),
              HasSubstr("unsupported operand types for +: 'str' and 'int'"));
  EXPECT_EQ(text_of("{{ x.append(1) }}", R"({"x": []})"),
            "error: line 1: 'append' would change the list, which templates may not");
  EXPECT_EQ(text_of("{{ 'a'.encode() }}"),
            "error: line 1: the method 'encode' of str is not supported in chat templates here");
  EXPECT_THAT(text_of("{% macro f(a) %}\n{{ a.b.c }}\n{% endmacro %}\n{{ f({}) }}"),
              StartsWith("error: line 2: "));
  EXPECT_THAT(text_of("{% macro f() %}\n\n{% endmacro %}\n{{ f() + 1 }}"),
              StartsWith("error: line 4: "));
}

// Each ends with an error in bounded time and memory.
TEST(Jinja, StopsHostileTemplates) {
  constexpr std::string_view kHostile[] = {
      "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
      "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
      "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('ab') }}",
      "{% set ns = namespace(x='abcdefgh') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x "
      "%}{% endfor %}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% "
      "endfor %}",
      "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}",
      "{% set ns = namespace(x={}) %}{% for i in range(9999) %}{% set ns.x = {'a': ns.x} %}{% "
      "endfor %}",
      "{% set ns = namespace(x=1) %}{% for i in range(9999) %}{% set ns.x = cycler(ns.x) %}{% "
      "endfor %}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(9999) %}{% set ns.x = [ns.x.count] %}{% "
      "endfor %}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% "
      "endfor %}{{ ns.x }}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% "
      "endfor %}{{ ns.x|tojson }}",
      "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}"
      "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
      "{{ 'a' * 1000000000000 }}",
      "{{ [1] * 1000000000000 }}",
      "{{ ('a' * 60000000)|replace('a', 'b' * 1000) }}",
      "{{ ['x' * 1000000] * 100000 | join }}",
      "{{ '%1000000000d' % 1 }}",
      "{{ 'a'.center(10000000000) }}",
      "{{ 'a'|indent(10000000000, true) }}",
      "{{ {'a': [1]}|tojson(indent=10000000000) }}",
      "{{ 'a a a '*9999999|list|length }}",
      "{{ ('a '*30000000).split()|length }}",
      "{{ range(100001) }}",
      "{{ 2 ** 127 }}",
      "{{ 9 ** 9 ** 9 }}",
      "{{ 170141183460469231731687303715884105727 + 1 }}",
      "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
      "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x == [namespace()] }}{{ ns }}",
      "{% set x = 'ab' * 30000000 %}{% for i in range(100000) %}{% if 'c' in x %}{% endif %}{% "
      "endfor %}",
      "{% for i in range(100000) %}{{ 'abcdefghijklmnopqrstuvwxyz' * 100 }}{% endfor %}",
  };
  for (std::string_view source : kHostile) {
    const auto before = std::chrono::steady_clock::now();
    const auto text = render(source);
    const auto took = std::chrono::steady_clock::now() - before;
    EXPECT_FALSE(text) << source << "\ngave " << text->substr(0, 100);
    EXPECT_LT(took, std::chrono::seconds(60)) << source;
  }
}

std::string repeated(std::string_view text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

TEST(Jinja, RefusesEndlessNestingInTheText) {
  for (std::string_view open :
       {"(", "[", "{'a':", "not ", "-", "x[", "x(", "f(a=", "x if y else "}) {
    EXPECT_THAT(parse_error("{{ " + repeated(open, 100000)), HasSubstr("nested too deeply"))
        << open;
  }
  EXPECT_THAT(parse_error(repeated("{% if x %}", 100000)), HasSubstr("nested too deeply"));
  EXPECT_THAT(parse_error(repeated("{% for x in y %}", 100000)), HasSubstr("nested too deeply"));
  for (std::string_view chain :
       {" + x", " * x", " or x", " and x", "|list", ".x", "[0]", "()", " if x"}) {
    EXPECT_THAT(parse_error("{{ x" + repeated(chain, 100000) + " }}"), HasSubstr("300 levels"))
        << chain;
  }
  EXPECT_EQ(text_of("{{ " + repeated("'a' ~ ", 10000) + "'b' }}"), repeated("a", 10000) + "b");
  EXPECT_EQ(text_of("{{ 'a'" + repeated(" + 'b'", 250) + " }}"), "a" + repeated("b", 250));
  EXPECT_EQ(text_of("{% if 1 %}a" + repeated("{% elif 1 %}b", 10000) + "{% endif %}"), "a");
}

TEST(Jinja, RefusesEndlessNestingInTheInput) {
  boost::json::value nested = 1;
  for (int i = 0; i < 1000; ++i) nested = boost::json::array{std::move(nested)};
  const auto parsed = ChatTemplate::parse("{{ x }}");
  ASSERT_TRUE(parsed);
  const auto text = parsed->render({{"x", std::move(nested)}});
  ASSERT_FALSE(text);
  EXPECT_EQ(text.error().code, ErrorCode::kResourceExhausted);
}

TEST(Jinja, TellsLimitsFromWrongInput) {
  EXPECT_EQ(render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").error().code,
            ErrorCode::kResourceExhausted);
  EXPECT_EQ(render("{{ raise_exception('no') }}").error().code, ErrorCode::kInvalidArgument);
}

TEST(Jinja, LetsValuesOutliveTheirLoops) {
  // Values that refer to each other in circles, or to what has ended, neither leak nor dangle.
  EXPECT_EQ(text_of("{% set ns = namespace() %}{% for x in [1, 2] %}{% set ns.loop = loop %}{% set "
                    "ns.next = loop.cycle %}"
                    "{% macro m() %}{{ x }}{% endmacro %}{% set ns.macro = m %}{{ "
                    "loop.changed([loop, ns]) }}{% endfor %}"),
            "TrueFalse");
  EXPECT_THAT(text_of("{% set ns = namespace() %}{% for x in [1] %}{% set ns.l = loop %}{% endfor "
                      "%}{{ ns.l.index }}"),
              HasSubstr("after its loop"));
  EXPECT_THAT(
      text_of("{% set ns = namespace() %}{% for x in [1] %}{% macro m() %}{{ x }}{% endmacro %}"
              "{% set ns.m = m %}{% endfor %}{{ ns.m() }}"),
      HasSubstr("outside of the block"));
}

TEST(Jinja, AcceptsBytesThatAreNotUtf8) {
  const auto parsed =
      ChatTemplate::parse("\xff{{ x|upper|length }}{{ x|tojson }}{{ [x] }}{{ x[::-1]|title }}\xc3");
  ASSERT_TRUE(parsed) << parsed.error().message;
  EXPECT_TRUE(parsed->render({{"x", "a\xff\xed\xa0\x80\xf0\x9f"}}));
}

TEST(Jinja, RendersFromManyThreads) {
  const auto parsed = ChatTemplate::parse(
      "{% macro m(x) %}[{{ x|tojson }}]{% endmacro %}{% set ns = namespace(n=0) %}"
      "{% for i in range(50) %}{% set ns.n = ns.n + i %}{{ m({'n': ns.n, 'v': v}) }}{% endfor %}");
  ASSERT_TRUE(parsed);
  const auto render_one = [&](int v) { return parsed->render({{"v", v}}).value(); };
  const std::string expected = render_one(1);
  std::vector<std::string> results(4);
  std::vector<std::thread> threads;
  for (std::string& result : results) threads.emplace_back([&] { result = render_one(1); });
  for (std::thread& thread : threads) thread.join();
  for (const std::string& result : results) EXPECT_EQ(result, expected);
}

}  // namespace
}  // namespace moiety
