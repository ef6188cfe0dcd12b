// template_check: renders templates from standard input, one JSON object {"template": ...,
// "variables": {...}} a line, or {"folder": ..., "variables": {...}} for a checkpoint's own. Prints
// one line for each: {"text": ...},
// {"parse_error": ...} or {"render_error": ...}. template_test.py compares them with jinja2's.

#include <boost/json.hpp>
#include <iostream>
#include <map>
#include <optional>
#include <string>

#include "model/chat_template.h"

namespace {

namespace json = boost::json;
using moiety::ChatTemplate;
using moiety::Result;

Result<ChatTemplate> template_of(const json::object& request) {
  if (const json::value* source = request.if_contains("template"))
    return ChatTemplate::parse(source->as_string());
  MOIETY_ASSIGN(auto loaded, ChatTemplate::load(std::string(request.at("folder").as_string())));
  if (!loaded) return moiety::fail(moiety::ErrorCode::kNotFound, "no chat template");
  return std::move(*loaded);
}

json::object answer(const json::object& request) {
  static std::map<std::string, Result<ChatTemplate>> known;
  const json::value* name = request.if_contains("template");
  const std::string key(name ? name->as_string() : request.at("folder").as_string());
  auto found = known.find(key);
  if (found == known.end()) found = known.emplace(key, template_of(request)).first;
  if (!found->second) return {{"parse_error", found->second.error().message}};
  const Result<std::string> text = found->second->render(request.at("variables").as_object());
  if (!text) return {{"render_error", text.error().message}};
  return {{"text", *text}};
}

}  // namespace

int main() {
  json::parse_options options;
  options.max_depth = 200;
  for (std::string line; std::getline(std::cin, line);) {
    const json::value request = json::parse(line, {}, options);
    std::cout << json::serialize(answer(request.as_object())) << '\n';
  }
  return 0;
}
