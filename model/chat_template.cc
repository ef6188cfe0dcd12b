#include "model/chat_template.h"

#include <array>
#include <boost/json.hpp>
#include <exception>
#include <utility>
#include <vector>

#include "common/file.h"
#include "model/jinja_interpreter.h"
#include "model/jinja_text.h"

namespace moiety {
namespace {

namespace json = boost::json;

constexpr std::size_t kMaxTemplateBytes = 4u << 20;

// The names under which Hugging Face gives a tokenizer's special tokens to its template.
constexpr std::array<std::string_view, 8> kSpecialTokens = {
    "bos_token", "eos_token", "unk_token",  "sep_token",
    "pad_token", "cls_token", "mask_token", "additional_special_tokens"};

jinja::Value to_value(jinja::Run& run, const json::value& from, int depth = 0) {
  if (depth > jinja::kMaxValueDepth) {
    throw jinja::Failure{jinja::Failure::Kind::kLimit,
                         "the input's lists and objects are nested too deeply"};
  }
  switch (from.kind()) {
    case json::kind::null:
      return jinja::None{};
    case json::kind::bool_:
      return from.get_bool();
    case json::kind::int64:
      return jinja::Int{from.get_int64()};
    case json::kind::uint64:
      return jinja::Int{from.get_uint64()};
    case json::kind::double_:
      return from.get_double();
    case json::kind::string:
      return run.text(std::string(std::string_view(from.get_string())));
    case json::kind::array: {
      std::vector<jinja::Value> items;
      items.reserve(from.get_array().size());
      for (const json::value& item : from.get_array())
        items.push_back(to_value(run, item, depth + 1));
      return run.list(std::move(items));
    }
    case json::kind::object: {
      std::vector<std::pair<jinja::Value, jinja::Value>> entries;
      entries.reserve(from.get_object().size());
      for (const auto& [key, value] : from.get_object()) {
        entries.emplace_back(run.text(std::string(std::string_view(key))),
                             to_value(run, value, depth + 1));
      }
      return run.dict(std::move(entries));
    }
  }
  return jinja::None{};
}

Error to_error(const jinja::Failure& failure, int line) {
  const ErrorCode code = failure.kind == jinja::Failure::Kind::kLimit
                             ? ErrorCode::kResourceExhausted
                             : ErrorCode::kInvalidArgument;
  std::string message = "line " + std::to_string(line) + ": ";
  return fail(code, message += failure.message);
}

Result<jinja::Template> parse_source(std::string_view source) {
  if (source.size() > kMaxTemplateBytes) {
    return fail(ErrorCode::kInvalidArgument, "a template of more than 4 MiB");
  }
  int line = 1;
  try {
    return jinja::parse(source, line);
  } catch (const jinja::Failure& failure) {
    Error error = to_error(failure, line);
    error.code = ErrorCode::kInvalidArgument;
    return error;
  } catch (const std::exception& error) {
    return fail(ErrorCode::kInternal, jinja::words({"parsing a chat template: ", error.what()}));
  }
}

Result<json::value> read_json(const std::filesystem::path& path) {
  MOIETY_ASSIGN(const std::string text, read_regular_file(path, 64u << 20));
  boost::system::error_code error;
  json::value parsed = json::parse(text, error);
  if (error)
    return fail(ErrorCode::kInvalidArgument,
                jinja::words({path.string(), ": not JSON: ", error.message()}));
  if (!parsed.is_object())
    return fail(ErrorCode::kInvalidArgument, jinja::words({path.string(), ": not a JSON object"}));
  return parsed;
}

// The template called `name` of a file's chat_template: one text, which is "default", or a list of
// {name, template}.
Result<std::optional<std::string>> find_template(const json::value& file, std::string_view name) {
  const json::value* found = file.get_object().if_contains("chat_template");
  if (!found || found->is_null()) return std::optional<std::string>();
  if (const json::string* text = found->if_string()) {
    if (name != "default") return std::optional<std::string>();
    return std::optional(std::string(std::string_view(*text)));
  }
  const auto wrong = [] {
    return fail(ErrorCode::kInvalidArgument,
                "chat_template: neither a string nor a list of {name, template}");
  };
  const json::array* list = found->if_array();
  if (!list) return wrong();
  for (const json::value& entry : *list) {
    const json::object* named = entry.if_object();
    const json::value* its_name = named ? named->if_contains("name") : nullptr;
    const json::value* its_text = named ? named->if_contains("template") : nullptr;
    if (!its_name || !its_name->is_string() || !its_text || !its_text->is_string()) return wrong();
    if (std::string_view(its_name->get_string()) != name) continue;
    return std::optional(std::string(std::string_view(its_text->get_string())));
  }
  return std::optional<std::string>();
}

// A special token as files spell it: its text, or an object with its text as `content`. nullptr:
// none.
const json::string* token_text(const json::value& value) {
  if (const json::string* text = value.if_string()) return text;
  const json::object* object = value.if_object();
  const json::value* content = object ? object->if_contains("content") : nullptr;
  return content ? content->if_string() : nullptr;
}

void add_special_tokens(const json::object& file, json::object& variables) {
  for (std::string_view name : kSpecialTokens) {
    const json::value* value = file.if_contains(name);
    if (!value) continue;
    if (const json::string* text = token_text(*value)) {
      if (!text->empty()) variables[name] = *text;
    } else if (const json::array* list = value->if_array()) {
      json::array texts;
      for (const json::value& each : *list) {
        if (const json::string* token = token_text(each)) texts.emplace_back(*token);
      }
      if (!texts.empty()) variables[name] = std::move(texts);
    }
  }
}

}  // namespace

struct ChatTemplate::State {
  jinja::Template parsed;
  json::object defaults;  // variables of every rendering
};

ChatTemplate::ChatTemplate(std::shared_ptr<const State> state) : state_(std::move(state)) {}
ChatTemplate::ChatTemplate(const ChatTemplate&) = default;
ChatTemplate& ChatTemplate::operator=(const ChatTemplate&) = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

Result<ChatTemplate> ChatTemplate::parse(std::string_view source) {
  auto state = std::make_shared<State>();
  MOIETY_ASSIGN(state->parsed, parse_source(source));
  return ChatTemplate(std::move(state));
}

Result<std::optional<ChatTemplate>> ChatTemplate::load(const std::filesystem::path& folder,
                                                       std::string_view name) {
  const bool is_default = name == "default";
  if (name.empty() || name.find('/') != name.npos || name.starts_with('.')) {
    return fail(ErrorCode::kInvalidArgument,
                jinja::words({"'", std::string(name), "' is no name of a chat template"}));
  }
  json::object config;
  const std::filesystem::path config_file = folder / "tokenizer_config.json";
  if (entry_exists(config_file)) {
    MOIETY_ASSIGN(const json::value parsed, read_json(config_file));
    config = parsed.get_object();
  }
  std::optional<std::string> source;
  std::filesystem::path path;  // of `source`
  const std::filesystem::path own_file =
      is_default ? folder / "chat_template.jinja"
                 : folder / "additional_chat_templates" / (std::string(name) + ".jinja");
  const std::filesystem::path json_file = folder / "chat_template.json";
  // Templates in files of their own replace all that the others hold.
  if (!is_default && !entry_exists(own_file) && entry_exists(folder / "chat_template.jinja")) {
    return std::optional<ChatTemplate>();
  }
  if (entry_exists(own_file)) {
    path = own_file;
    MOIETY_ASSIGN(source, read_regular_file(own_file, kMaxTemplateBytes));
  } else if (entry_exists(json_file)) {
    path = json_file;
    MOIETY_ASSIGN(const json::value parsed, read_json(json_file));
    auto found = find_template(parsed, name);
    if (!found) return with_context(path.string(), found.error());
    source = std::move(*found);
    // With a default of its own it replaces what tokenizer_config.json holds.
    if (!source && !is_default) {
      MOIETY_ASSIGN(const auto its_default, find_template(parsed, "default"));
      if (its_default) return std::optional<ChatTemplate>();
    }
  }
  if (!source) {
    path = config_file;
    auto found = find_template(config, name);
    if (!found) return with_context(path.string(), found.error());
    source = std::move(*found);
  }
  if (!source) return std::optional<ChatTemplate>();
  MOIETY_ASSIGN(ChatTemplate loaded, with_defaults(*source, path, folder, config));
  return std::optional(std::move(loaded));
}

Result<ChatTemplate> ChatTemplate::load_file(const std::filesystem::path& file,
                                             const std::filesystem::path& folder) {
  MOIETY_ASSIGN(const std::string source, read_file(file, kMaxTemplateBytes));
  json::object config;
  const std::filesystem::path config_file = folder / "tokenizer_config.json";
  if (entry_exists(config_file)) {
    MOIETY_ASSIGN(const json::value parsed, read_json(config_file));
    config = parsed.get_object();
  }
  return with_defaults(source, file, folder, config);
}

Result<ChatTemplate> ChatTemplate::with_defaults(std::string_view source,
                                                 const std::filesystem::path& path,
                                                 const std::filesystem::path& folder,
                                                 const json::object& config) {
  auto parsed = parse_source(source);
  if (!parsed) {
    return with_context(jinja::words({path.string(), ": chat template"}), parsed.error());
  }
  auto state = std::make_shared<State>();
  state->parsed = std::move(*parsed);
  // What Hugging Face's apply_chat_template passes when its caller does not.
  state->defaults = {{"tools", nullptr}, {"documents", nullptr}, {"add_generation_prompt", false}};
  add_special_tokens(config, state->defaults);
  const std::filesystem::path map_file = folder / "special_tokens_map.json";
  if (!config.contains("added_tokens_decoder") &&
      entry_exists(map_file)) {  // checkpoints of older libraries
    MOIETY_ASSIGN(const json::value map, read_json(map_file));
    add_special_tokens(map.get_object(), state->defaults);
  }
  return ChatTemplate(std::move(state));
}

Result<std::string> ChatTemplate::render(const json::object& variables) const {
  jinja::Run run;
  try {
    std::vector<std::pair<jinja::Value, jinja::Value>> entries;
    const auto add = [&](const auto& entry) {
      entries.emplace_back(run.text(std::string(std::string_view(entry.key()))),
                           to_value(run, entry.value()));
    };
    for (const auto& entry : state_->defaults) {
      if (!variables.contains(entry.key())) add(entry);
    }
    for (const auto& entry : variables) add(entry);
    const jinja::Value all = run.dict(std::move(entries));
    return jinja::Interpreter(run, *jinja::dict_of(all)).render(state_->parsed);
  } catch (const jinja::Failure& failure) {
    return to_error(failure, run.line);
  } catch (const std::exception& error) {
    return fail(ErrorCode::kInternal, std::string("rendering a chat template: ") + error.what());
  }
}

}  // namespace moiety
