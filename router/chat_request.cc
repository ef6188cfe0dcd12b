#include "router/chat_request.h"

#include <fmt/format.h>

#include <boost/json.hpp>

#include "model/chat_template.h"

namespace moiety {
namespace json = boost::json;
namespace {

constexpr std::string_view kRoles[] = {"system", "developer", "user", "assistant", "tool"};

std::string_view view(const json::string& text) { return {text.data(), text.size()}; }

/// `content` as one string: parts of type text, one line each. Errors name `where`.
bool flatten_content(FieldReader& reader, const std::string& where, json::value& content) {
  if (content.is_string()) return true;
  if (!content.is_array()) {
    reader.fail("messages", where + " must be a string or an array of text parts");
    return false;
  }
  std::string text;
  for (std::size_t i = 0; i < content.get_array().size(); ++i) {
    const json::value& part = content.get_array()[i];
    const std::string part_name = fmt::format("{}[{}]", where, i);
    const json::object* object = part.if_object();
    const json::value* type = object == nullptr ? nullptr : object->if_contains("type");
    if (type == nullptr || !type->is_string()) {
      reader.fail("messages", part_name + " must be an object with a type");
      return false;
    }
    if (type->get_string() != "text") {
      reader.fail("messages", fmt::format("{} is of type '{}': this model reads text parts only",
                                          part_name, view(type->get_string())));
      return false;
    }
    const json::value* piece = object->if_contains("text");
    if (piece == nullptr || !piece->is_string()) {
      reader.fail("messages", part_name + ".text must be a string");
      return false;
    }
    if (i > 0) text += '\n';
    text += view(piece->get_string());
  }
  content = json::string(text);
  return true;
}

/// Templates print arguments as JSON, so they get the object that the API's string spells.
bool parse_tool_calls(FieldReader& reader, const std::string& where, json::value& calls) {
  const auto refuse = [&](std::size_t i, std::string_view what) {
    reader.fail("messages", fmt::format("{}[{}]{}", where, i, what));
    return false;
  };
  if (!calls.is_array()) {
    reader.fail("messages", where + " must be an array");
    return false;
  }
  for (std::size_t i = 0; i < calls.get_array().size(); ++i) {
    json::object* call = calls.get_array()[i].if_object();
    json::value* function = call == nullptr ? nullptr : call->if_contains("function");
    if (function == nullptr || !function->is_object()) {
      return refuse(i, " must be an object with a function");
    }
    json::value* arguments = function->get_object().if_contains("arguments");
    if (arguments == nullptr || !arguments->is_string()) continue;
    if (arguments->get_string().empty()) {
      *arguments = json::object();
      continue;
    }
    json::value parsed;
    const auto wrong = parse_json(view(arguments->get_string()), parsed);
    if (wrong) {
      return refuse(i,
                    ".function.arguments must be a string that holds a JSON object; it " + *wrong);
    }
    if (!parsed.is_object()) {
      return refuse(i, ".function.arguments must be a string that holds a JSON object");
    }
    *arguments = std::move(parsed);
  }
  return true;
}

bool check_message(FieldReader& reader, const std::string& where, json::value& value) {
  json::object* message = value.if_object();
  if (message == nullptr) {
    reader.fail("messages", where + " must be an object with a role and a content");
    return false;
  }
  const json::value* role = message->if_contains("role");
  bool known = false;
  for (std::string_view name : kRoles) {
    known = known || (role != nullptr && role->is_string() && role->get_string() == name);
  }
  if (!known) {
    reader.fail("messages", where + ".role must be system, developer, user, assistant or tool");
    return false;
  }
  const bool is_assistant = role->get_string() == "assistant";
  json::value* calls = message->if_contains("tool_calls");
  if (calls != nullptr && calls->is_null()) {
    message->erase("tool_calls");
    calls = nullptr;
  }
  if (calls != nullptr && !parse_tool_calls(reader, where + ".tool_calls", *calls)) return false;
  json::value& content = (*message)["content"];  // null when it is not there
  if (content.is_null()) {
    if (!is_assistant) {
      reader.fail("messages", where + ".content is missing");
      return false;
    }
    content = "";
  }
  return flatten_content(reader, where + ".content", content);
}

void read_tools(FieldReader& reader, json::object& variables) {
  const json::value* tools = reader.find("tools");
  const json::value* choice = reader.find("tool_choice");
  bool use = true;
  if (choice != nullptr) {
    const bool is_none = choice->is_string() && choice->get_string() == "none";
    const bool is_auto = choice->is_string() && choice->get_string() == "auto";
    if (!is_none && !is_auto) {
      reader.fail("tool_choice", "tool_choice must be none or auto: a call cannot be forced here");
    }
    use = is_auto;
  }
  if (tools == nullptr) return;
  if (!tools->is_array()) return reader.fail("tools", "tools must be an array");
  for (std::size_t i = 0; i < tools->get_array().size(); ++i) {
    const json::object* tool = tools->get_array()[i].if_object();
    const json::value* type = tool == nullptr ? nullptr : tool->if_contains("type");
    const json::value* function = tool == nullptr ? nullptr : tool->if_contains("function");
    if (type == nullptr || !type->is_string() || type->get_string() != "function" ||
        function == nullptr || !function->is_object()) {
      return reader.fail(
          "tools", fmt::format("tools[{}] must be an object of type function with a function", i));
    }
  }
  if (use && !tools->get_array().empty()) variables["tools"] = *tools;
}

void read_template_fields(FieldReader& reader, ChatRequest& request) {
  const bool generation_prompt_given = reader.find("add_generation_prompt") != nullptr;
  bool add_generation_prompt = true;
  reader.read("add_generation_prompt", add_generation_prompt);
  reader.read("continue_final_message", request.continue_final_message);
  reader.read("add_special_tokens", request.add_special_tokens);
  if (request.continue_final_message) {
    if (generation_prompt_given && add_generation_prompt) {
      reader.fail("continue_final_message",
                  "continue_final_message and add_generation_prompt exclude each other");
    }
    add_generation_prompt = false;
  }
  request.variables["add_generation_prompt"] = add_generation_prompt;
  std::string effort;
  reader.read("reasoning_effort", effort);
  if (!effort.empty()) request.variables["reasoning_effort"] = effort;
  const json::value* more = reader.find("chat_template_kwargs");
  if (more == nullptr) return;
  if (!more->is_object()) {
    return reader.fail("chat_template_kwargs",
                       "chat_template_kwargs must be an object of variables of the template");
  }
  for (const auto& [name, value] : more->get_object()) {
    for (const char* own : {"messages", "tools", "add_generation_prompt"}) {
      if (name != own) continue;
      reader.fail("chat_template_kwargs",
                  fmt::format("chat_template_kwargs.{} is a field of its own", own));
    }
    request.variables[name] = value;
  }
}

void read_logprobs(FieldReader& reader, GenerationFields& fields) {
  bool wanted = false;
  std::int32_t top = 0;
  reader.read("logprobs", wanted);
  reader.read("top_logprobs", 0, kMaxLogprobs, top);
  if (top > 0 && !wanted) {
    reader.fail("top_logprobs", "top_logprobs goes with logprobs: true only");
  }
  fields.logprobs = wanted ? top : -1;
}

void read_response_format(FieldReader& reader) {
  const json::value* format = reader.find("response_format");
  if (format == nullptr) return;
  const json::object* object = format->if_object();
  const json::value* type = object == nullptr ? nullptr : object->if_contains("type");
  if (type == nullptr || !type->is_string() || type->get_string() != "text") {
    reader.fail("response_format",
                "response_format must be {\"type\": \"text\"}: answers cannot "
                "be held to a format here");
  }
}

Result<std::string> render(const ChatTemplate& chat_template, const json::object& variables) {
  auto text = chat_template.render(variables);
  if (!text) return with_context("the chat template", text.error());
  return text;
}

}  // namespace

void read_messages(FieldReader& reader, json::object& variables) {
  const json::value* messages = reader.find("messages");
  if (messages == nullptr || !messages->is_array() || messages->get_array().empty()) {
    return reader.fail("messages", "messages must be an array of at least one message");
  }
  json::array checked = messages->get_array();
  for (std::size_t i = 0; i < checked.size(); ++i) {
    if (!check_message(reader, fmt::format("messages[{}]", i), checked[i])) return;
  }
  variables["messages"] = std::move(checked);
}

std::variant<ChatRequest, FieldError> parse_chat_request(std::string_view body,
                                                         std::int32_t vocab_size) {
  json::value parsed;
  if (auto error = parse_body(body, parsed)) return *std::move(error);
  FieldReader reader(parsed.get_object());
  ChatRequest request;
  request.fields = read_generation_fields(reader, vocab_size);
  read_messages(reader, request.variables);
  read_tools(reader, request.variables);
  read_template_fields(reader, request);
  read_logprobs(reader, request.fields);
  read_response_format(reader);
  reader.ignore({"parallel_tool_calls"});
  const json::value* modalities = reader.find("modalities");
  if (modalities != nullptr && *modalities != json::value(json::array{"text"})) {
    reader.fail("modalities", "modalities must be [\"text\"]");
  }
  reader.refuse_unless_neutral("store", "", "nothing is kept here");
  reader.refuse_unless_neutral("functions", "", "give tools instead");
  reader.refuse_unless_neutral("function_call", "none", "give tools and tool_choice instead");
  reader.refuse_unless_neutral("audio", "", "answers are text");
  reader.refuse_unless_neutral("prediction", "", "leave it out");
  reader.refuse_unless_neutral("web_search_options", "", "there is no search here");
  reader.refuse_unread();
  if (reader.error()) return *reader.error();
  return request;
}

Result<std::string> render_chat(const ChatTemplate& chat_template, const ChatRequest& request) {
  if (!request.continue_final_message) return render(chat_template, request.variables);
  static constexpr std::string_view kBlanks = " \t\n\r\f\v";
  json::object variables = request.variables;
  json::string& content = variables.at("messages").as_array().back().at("content").as_string();
  const std::size_t begin = view(content).find_first_not_of(kBlanks);
  if (begin == std::string_view::npos) {
    return fail(ErrorCode::kInvalidArgument,
                "continue_final_message: the last message has no content to go on with");
  }
  const std::size_t end = view(content).find_last_not_of(kBlanks) + 1;
  const std::string trimmed(view(content).substr(begin, end - begin));
  // A mark shows where the content ends: a short one may stand in what the template writes behind
  // it, too. Where the template trims, the mark's blank is gone, and so are the content's.
  static constexpr std::string_view kMark = "MOIETY_GOES_ON_HERE";
  content.append(json::string_view(kMark.data(), kMark.size()));
  content += '\t';
  MOIETY_ASSIGN(std::string text, render(chat_template, variables));
  const std::size_t found = text.rfind(kMark);
  if (found != std::string::npos) {
    const bool kept = text.compare(found + kMark.size(), 1, "\t") == 0;
    text.resize(found);
    const std::size_t shown = text.find_last_not_of(kBlanks) + 1;
    if (std::string_view(text).substr(0, shown).ends_with(trimmed)) {
      if (!kept) text.resize(shown);
      return text;
    }
  }
  return fail(ErrorCode::kInvalidArgument,
              "continue_final_message: the chat template does not show the last message as it is");
}

}  // namespace moiety
