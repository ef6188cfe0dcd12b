// A chat template from outside, rendered with a conversation that has every kind of value.
#include <boost/json.hpp>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "common/check.h"
#include "model/chat_template.h"
#include "model/jinja_interpreter.h"
#include "model/jinja_run.h"

namespace {

namespace jinja = moiety::jinja;

jinja::Value conversation(jinja::Run& run) {
  const auto text = [&](std::string_view bytes) { return run.text(std::string(bytes)); };
  const auto message = [&](std::string_view role, std::string_view content) {
    return run.dict({{text("role"), text(role)}, {text("content"), text(content)}});
  };
  const jinja::Value numbers =
      run.list({jinja::Int{1}, -2.5, true, jinja::None{}, text("\xff\xc3\xa9")});
  return run.dict({{text("messages"), run.list({message("system", "<s>"), message("user", " Hi\n"),
                                                message("tool", "")})},
                   {text("tools"), run.list({run.dict({{text("items"), numbers}})})},
                   {text("x"), numbers},
                   {text("n"), jinja::Int{7}},
                   {text("s"), text("Hello, W\xc3\xb6rld")}});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view source(reinterpret_cast<const char*>(data), size);
  int line = 0;
  jinja::Limits limits;
  limits.steps = 20'000;  // so that no input takes long
  limits.made_bytes = 1u << 22;
  limits.text_bytes = 1u << 20;
  jinja::Run run(limits);
  try {
    const jinja::Template parsed = jinja::parse(source, line);
    const jinja::Value variables = conversation(run);
    const std::string text = jinja::Interpreter(run, *jinja::dict_of(variables)).render(parsed);
    MOIETY_CHECK(text.size() <= limits.text_bytes, "more output than allowed");
  } catch (const jinja::Failure& failure) {
    MOIETY_CHECK(!failure.message.empty() || source.find("raise_exception") != source.npos,
                 "failed without a reason");
  }
  return 0;
}
