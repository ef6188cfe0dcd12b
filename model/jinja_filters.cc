// The table of filters, and those that make text.

#include "model/jinja_filters.h"

#include <algorithm>
#include <array>

#include "model/jinja_operators.h"
#include "model/jinja_text.h"

namespace moiety::jinja {
namespace {

void take_no_arguments(std::string_view name, const Arguments& arguments) {
  const Bound bound(name, {}, arguments);
}

template <std::string (*Change)(std::string_view)>
Value change(Run& run, const Value& value, const Arguments& arguments) {
  take_no_arguments("filter", arguments);
  const Text text = soft_text(run, value);
  return run.text(Change(text.view()), text.markup);
}

std::string_view require_text(std::string_view filter, const Value& value) {
  if (const Text* text = text_of(value)) return text->view();
  require_defined(value);
  std::string message(filter);
  type_error(message.append(" needs a string, not ").append(type_name(value)));
}

Value string(Run& run, const Value& value, const Arguments& arguments) {
  take_no_arguments("string", arguments);
  return soft_text(run, value);
}

Value safe(Run& run, const Value& value, const Arguments& arguments) {
  take_no_arguments("safe", arguments);
  return Text{soft_text(run, value).bytes, true};
}

Value escape(Run& run, const Value& value, const Arguments& arguments) {
  take_no_arguments("escape", arguments);
  const Text text = soft_text(run, value);
  return text.markup ? Value(text) : run.text(escape_html(text.view()), true);
}

Value force_escape(Run& run, const Value& value, const Arguments& arguments) {
  take_no_arguments("forceescape", arguments);
  return run.text(escape_html(to_text(run, value)), true);
}

Value default_value(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("default", {"default_value", "boolean"}, arguments);
  const bool missing =
      is<Undefined>(value) || (bound[1] && truthy(run, *bound[1]) && !truthy(run, value));
  if (!missing) return value;
  return bound[0] ? *bound[0] : run.text("");
}

Value trim(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("trim", {"chars"}, arguments);
  const Text text = soft_text(run, value);
  if (!bound[0] || is<None>(*bound[0]))
    return run.text(std::string(strip(text.view(), true, true)), text.markup);
  const std::string_view chars = require_text("trim", *bound[0]);
  if (chars.size() > 4096) unsupported("trim of more than 4096 bytes of characters");
  return run.text(std::string(strip(text.view(), chars, true, true)), text.markup);
}

// Like Jinja's title, which capitalizes after white space and - ( { [ < only.
Value title_filter(Run& run, const Value& value, const Arguments& arguments) {
  take_no_arguments("title", arguments);
  const Text text = soft_text(run, value);
  const auto splits = [](std::string_view rest) {
    const char32_t c = first_character(rest);
    return is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
  };
  std::string out;
  for (std::string_view rest = text.view(); !rest.empty();) {
    std::size_t end = 0;
    const bool between = splits(rest);
    while (end < rest.size() && splits(rest.substr(end)) == between)
      end += character_bytes(rest.substr(end));
    const std::size_t first = character_bytes(rest);
    out += upper(rest.substr(0, first));
    out += lower(rest.substr(first, end - first));
    rest.remove_prefix(end);
  }
  return run.text(std::move(out));
}

Value replace(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("replace", {"old", "new", "count"}, arguments, 2);
  const Int most = bound[2] && !is<None>(*bound[2]) ? require_integer(*bound[2]) : -1;
  return run.text(
      replaced(run, to_text(run, value), to_text(run, *bound[0]), to_text(run, *bound[1]), most));
}

Value center(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("center", {"width"}, arguments);
  const Text text = soft_text(run, value);
  const Int width = bound[0] ? require_integer(*bound[0]) : 80;
  return run.text(justified(run, text.view(), width, " ", Align::kCenter), text.markup);
}

Value indent(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("indent", {"width", "first", "blank"}, arguments);
  const std::string_view text = require_text("indent", value);
  std::string indention(4, ' ');
  if (bound[0]) {
    const Text* given = text_of(*bound[0]);
    indention =
        given ? *given->bytes : justified(run, "", require_integer(*bound[0]), " ", Align::kLeft);
  }
  const bool blank = bound[2] && truthy(run, *bound[2]);
  const std::string with_end = words({text, "\n"});  // so that a last empty line counts
  std::string out;
  bool first = true;
  for (std::string_view line : split_lines(run, with_end, false)) {
    if (!first) out += '\n';
    const bool wanted = first ? bound[1] && truthy(run, *bound[1]) : blank || !line.empty();
    if (wanted) {
      run.spend(indention.size());
      out += indention;
    }
    out += line;
    first = false;
  }
  return run.text(std::move(out), text_of(value)->markup);
}

Value format(Run& run, const Value& value, const Arguments& arguments) {
  if (!arguments.positional.empty() && !arguments.named.empty()) {
    runtime_error("format cannot take positional and named arguments at once");
  }
  if (arguments.named.empty())
    return format_percent(run, soft_text(run, value), run.tuple(arguments.positional));
  std::vector<std::pair<Value, Value>> named;
  for (const auto& [name, each] : arguments.named) named.emplace_back(run.text(name), each);
  return format_percent(run, soft_text(run, value), run.dict(std::move(named)));
}

Value word_count(Run& run, const Value& value, const Arguments& arguments) {
  take_no_arguments("wordcount", arguments);
  const Text text = soft_text(run, value);
  Int words = 0;
  bool inside = false;
  for (std::string_view rest = text.view(); !rest.empty();
       rest.remove_prefix(character_bytes(rest))) {
    const char32_t c = first_character(rest);
    const bool word = c == '_' || is_alphanumeric(c);
    words += word && !inside;
    inside = word;
  }
  return words;
}

Value url_encode(Run& run, const Value& value, const Arguments& arguments) {
  take_no_arguments("urlencode", arguments);
  const auto quote = [&](const Value& part, bool query) {
    std::string out;
    for (char c : to_text(run, part)) {
      const auto byte = static_cast<unsigned char>(c);
      const bool letter = (byte | 0x20) >= 'a' && (byte | 0x20) <= 'z';
      if (letter || (byte >= '0' && byte <= '9') ||
          std::string_view("_.-~").find(c) != std::string_view::npos || (c == '/' && !query)) {
        out += c;
      } else if (c == ' ' && query) {
        out += '+';
      } else {
        out += '%';
        out += "0123456789ABCDEF"[byte >> 4];
        out += "0123456789ABCDEF"[byte & 15];
      }
    }
    return out;
  };
  if (is<Text>(value) || !is_iterable(value)) return run.text(quote(value, false));
  std::string out;
  const auto add = [&](const Value& key, const Value& each) {
    if (!out.empty()) out += '&';
    out += quote(key, true) + "=";
    out += quote(each, true);
  };
  if (const Dict* dict = dict_of(value)) {
    for (const auto& [key, each] : dict->entries) add(key, each);
    return run.text(std::move(out));
  }
  for (const Value& pair : collect(run, value)) {
    const std::vector<Value> parts = collect(run, pair);
    if (parts.size() != 2) value_error("urlencode needs pairs of key and value");
    add(parts[0], parts[1]);
  }
  return run.text(std::move(out));
}

// As Hugging Face defines it for chat templates: json.dumps, not escaped for HTML.
Value to_json_filter(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("tojson", {"ensure_ascii", "indent", "separators", "sort_keys"}, arguments);
  JsonStyle style;
  style.ascii = bound[0] && truthy(run, *bound[0]);
  style.sort_keys = bound[3] && truthy(run, *bound[3]);
  if (bound[1] && !is<None>(*bound[1])) {
    const Text* given = text_of(*bound[1]);
    style.indented = true;
    style.indent =
        given ? *given->bytes : justified(run, "", require_integer(*bound[1]), " ", Align::kLeft);
    style.item_separator = std::string(",");
  }
  if (bound[2] && !is<None>(*bound[2])) {
    const std::vector<Value> separators = collect(run, *bound[2]);
    if (separators.size() != 2)
      value_error("separators needs two strings: (item_separator, key_separator)");
    style.item_separator = std::string(require_text("separators", separators[0]));
    style.key_separator = std::string(require_text("separators", separators[1]));
  }
  return run.text(to_json(run, value, style));
}

Value attribute(Run& run, const Value& value, const Arguments& arguments) {
  const Bound bound("attr", {"name"}, arguments, 1);
  const std::string_view name = require_text("attr", *bound[0]);
  require_defined(value);
  if (auto found = python_attribute(run, value, name)) return *found;
  std::string reason = "'";
  reason.append(type_name(value)).append(" object' has no attribute ");
  return undefined(reason += quoted(name));
}

struct Entry {
  std::string_view name;
  Filter filter;
};

constexpr std::array<Entry, 45> kFilters = {{
    {"abs", filter_abs},
    {"attr", attribute},
    {"batch", filter_batch},
    {"capitalize", change<capitalize>},
    {"center", center},
    {"count", filter_length},
    {"d", default_value},
    {"default", default_value},
    {"dictsort", filter_dictsort},
    {"e", escape},
    {"escape", escape},
    {"first", filter_first},
    {"float", filter_float},
    {"forceescape", force_escape},
    {"format", format},
    {"indent", indent},
    {"int", filter_int},
    {"items", filter_items},
    {"join", filter_join},
    {"last", filter_last},
    {"length", filter_length},
    {"list", filter_list},
    {"lower", change<lower>},
    {"map", filter_map},
    {"max", filter_max},
    {"min", filter_min},
    {"reject", filter_reject},
    {"rejectattr", filter_rejectattr},
    {"replace", replace},
    {"reverse", filter_reverse},
    {"round", filter_round},
    {"safe", safe},
    {"select", filter_select},
    {"selectattr", filter_selectattr},
    {"slice", filter_slice},
    {"sort", filter_sort},
    {"string", string},
    {"sum", filter_sum},
    {"title", title_filter},
    {"tojson", to_json_filter},
    {"trim", trim},
    {"unique", filter_unique},
    {"upper", change<upper>},
    {"urlencode", url_encode},
    {"wordcount", word_count},
}};

// Jinja's other filters.
constexpr std::array<std::string_view, 9> kOthers = {"filesizeformat", "groupby",   "pprint",
                                                     "random",         "striptags", "truncate",
                                                     "urlize",         "wordwrap",  "xmlattr"};

}  // namespace

Filter find_filter(std::string_view name) {
  for (const Entry& entry : kFilters) {
    if (entry.name == name) return entry.filter;
  }
  return nullptr;
}

bool is_jinja_filter(std::string_view name) {
  return find_filter(name) || std::find(kOthers.begin(), kOthers.end(), name) != kOthers.end();
}

}  // namespace moiety::jinja
