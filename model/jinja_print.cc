// Python's str(), repr() and json.dumps().

#include <algorithm>
#include <cmath>

#include "model/jinja_operators.h"
#include "model/jinja_text.h"

namespace moiety::jinja {
namespace {

// Output grows here before it becomes a value, so its size is counted as it grows.
class Printer {
 public:
  explicit Printer(Run& run) : run_(run) {}

  void repr(const Value& value);
  void json(const Value& value, const JsonStyle& style, int level);
  std::string out;

 private:
  void add(std::string_view text) {
    run_.spend(text.size());
    out += text;
  }
  void repr_sequence(const Sequence& sequence);
  void json_items(const Sequence& sequence, const JsonStyle& style, int level);
  void json_dict(const Dict& dict, const JsonStyle& style, int level);
  void json_string(std::string_view text, bool ascii);
  void json_key(const Value& key, const JsonStyle& style);
  void json_float(double value);
  void new_line(const JsonStyle& style, int level);

  Run& run_;
};

void Printer::repr_sequence(const Sequence& sequence) {
  using Type = Sequence::Type;
  if (sequence.type == Type::kRange) {
    add(words({"range(", integer_text(sequence.start), ", ", integer_text(sequence.stop)}));
    if (sequence.step != 1) add(words({", ", integer_text(sequence.step)}));
    return add(")");
  }
  if (sequence.is_view()) {
    add(sequence.type == Type::kKeys     ? "dict_keys("
        : sequence.type == Type::kValues ? "dict_values("
                                         : "dict_items(");
  }
  add(sequence.type == Type::kTuple ? "(" : "[");
  for (std::size_t i = 0; i < sequence.items.size(); ++i) {
    if (i > 0) add(", ");
    repr(sequence.items[i]);
  }
  if (sequence.type == Type::kTuple && sequence.items.size() == 1) add(",");
  add(sequence.type == Type::kTuple ? ")" : "]");
  if (sequence.is_view()) add(")");
}

void Printer::repr(const Value& value) {
  const Nested nested(run_);
  if (const Text* text = text_of(value)) {
    if (!text->markup) return add(quoted(text->view()));
    return add(words({"Markup(", quoted(text->view()), ")"}));
  }
  if (const Sequence* sequence = sequence_of(value)) return repr_sequence(*sequence);
  if (const Dict* dict = dict_of(value)) {
    add("{");
    for (std::size_t i = 0; i < dict->entries.size(); ++i) {
      if (i > 0) add(", ");
      repr(dict->entries[i].first);
      add(": ");
      repr(dict->entries[i].second);
    }
    return add("}");
  }
  if (is<Undefined>(value)) return add("Undefined");
  add(to_text(run_, value));
}

void Printer::new_line(const JsonStyle& style, int level) {
  if (!style.indented) return;
  add("\n");
  for (int i = 0; i < level; ++i) add(style.indent);
}

void Printer::json_string(std::string_view text, bool ascii) {
  std::string quoted = "\"";
  const auto unicode = [&](char32_t c) {
    quoted += "\\u";
    for (int shift = 12; shift >= 0; shift -= 4) quoted += "0123456789abcdef"[(c >> shift) & 15u];
  };
  while (!text.empty()) {
    const std::string_view bytes = text.substr(0, character_bytes(text));
    const char32_t c = first_character(text);
    text.remove_prefix(bytes.size());
    switch (c) {
      case '"':
      case '\\':
        quoted += '\\';
        quoted += bytes;
        break;
      case '\n':
        quoted += "\\n";
        break;
      case '\r':
        quoted += "\\r";
        break;
      case '\t':
        quoted += "\\t";
        break;
      case '\f':
        quoted += "\\f";
        break;
      case '\b':
        quoted += "\\b";
        break;
      default:
        if (c >= 0x20 && (!ascii || c < 0x7F)) {
          quoted += bytes;
        } else if (c < 0x10000) {
          unicode(c);
        } else {
          unicode(0xD800 + ((c - 0x10000) >> 10));
          unicode(0xDC00 + ((c - 0x10000) & 0x3FF));
        }
    }
  }
  add(quoted += '"');
}

void Printer::json_float(double value) {
  if (std::isnan(value)) return add("NaN");
  if (std::isinf(value)) return add(value < 0 ? "-Infinity" : "Infinity");
  add(float_text(value));
}

void Printer::json_key(const Value& key, const JsonStyle& style) {
  if (const Text* text = text_of(key)) return json_string(text->view(), style.ascii);
  add("\"");
  if (const auto* real = std::get_if<double>(&key)) {
    json_float(*real);
  } else if (const auto* boolean = std::get_if<bool>(&key)) {
    add(*boolean ? "true" : "false");
  } else if (is<None>(key)) {
    add("null");
  } else if (const auto* integer = std::get_if<Int>(&key)) {
    add(integer_text(*integer));
  } else {
    std::string message = "keys must be str, int, float, bool or None, not ";
    type_error(message.append(type_name(key)));
  }
  add("\"");
}

void Printer::json_items(const Sequence& sequence, const JsonStyle& style, int level) {
  if (sequence.items.empty()) return add("[]");
  add("[");
  for (std::size_t i = 0; i < sequence.items.size(); ++i) {
    if (i > 0) add(style.item_separator);
    new_line(style, level + 1);
    json(sequence.items[i], style, level + 1);
  }
  new_line(style, level);
  add("]");
}

void Printer::json_dict(const Dict& dict, const JsonStyle& style, int level) {
  if (dict.entries.empty()) return add("{}");
  std::vector<const std::pair<Value, Value>*> entries;
  for (const auto& entry : dict.entries) entries.push_back(&entry);
  if (style.sort_keys) {
    std::stable_sort(entries.begin(), entries.end(), [this](const auto* a, const auto* b) {
      return less(run_, a->first, b->first);
    });
  }
  add("{");
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (i > 0) add(style.item_separator);
    new_line(style, level + 1);
    json_key(entries[i]->first, style);
    add(style.key_separator);
    json(entries[i]->second, style, level + 1);
  }
  new_line(style, level);
  add("}");
}

void Printer::json(const Value& value, const JsonStyle& style, int level) {
  const Nested nested(run_);
  const Sequence* sequence = sequence_of(value);
  if (const Text* text = text_of(value)) {
    json_string(text->view(), style.ascii);
  } else if (is<None>(value)) {
    add("null");
  } else if (const auto* boolean = std::get_if<bool>(&value)) {
    add(*boolean ? "true" : "false");
  } else if (const auto* integer = std::get_if<Int>(&value)) {
    add(integer_text(*integer));
  } else if (const auto* real = std::get_if<double>(&value)) {
    json_float(*real);
  } else if (sequence && sequence->type <= Sequence::Type::kTuple) {
    json_items(*sequence, style, level);
  } else if (const Dict* dict = dict_of(value)) {
    json_dict(*dict, style, level);
  } else {
    std::string message = "Object of type ";
    message.append(type_name(value)).append(" is not JSON serializable");
    if (const auto* missing = std::get_if<Undefined>(&value))
      message.append(": ").append(*missing->reason);
    type_error(std::move(message));
  }
}

}  // namespace

std::string repr(Run& run, const Value& value) {
  Printer printer(run);
  printer.repr(value);
  return std::move(printer.out);
}

std::string to_text(Run& run, const Value& value) {
  if (const Text* text = text_of(value)) return *text->bytes;
  if (const auto* integer = std::get_if<Int>(&value)) return integer_text(*integer);
  if (const auto* real = std::get_if<double>(&value)) return float_text(*real);
  if (const auto* boolean = std::get_if<bool>(&value)) return *boolean ? "True" : "False";
  if (is<None>(value)) return "None";
  if (is<Undefined>(value) || is<Unset>(value)) return "";
  if (const auto* object = std::get_if<ObjectPtr>(&value)) return (*object)->repr(run);
  if (const auto* iterator = std::get_if<IteratorPtr>(&value)) {
    std::string what = "printing a ";
    unsupported(what.append((*iterator)->type_name));
  }
  return repr(run, value);
}

Text soft_text(Run& run, const Value& value) {
  if (const Text* text = text_of(value)) return *text;
  return std::get<Text>(run.text(to_text(run, value)));
}

std::string to_json(Run& run, const Value& value, const JsonStyle& style) {
  Printer printer(run);
  printer.json(value, style, 0);
  return std::move(printer.out);
}

}  // namespace moiety::jinja
