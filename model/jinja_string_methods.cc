// Methods of strings.

#include <algorithm>
#include <array>

#include "model/jinja_methods.h"
#include "model/jinja_operators.h"
#include "model/jinja_text.h"

namespace moiety::jinja {
namespace {

std::string_view self_view(const Value& self) { return text_of(self)->view(); }

// A result that is markup where the string was.
Value like(Run& run, const Value& self, std::string text) {
  return run.text(std::move(text), text_of(self)->markup);
}

std::string_view require_text(std::string_view method, const Value& value) {
  if (const Text* text = text_of(value)) return text->view();
  require_defined(value);
  std::string message(method);
  message.append("() needs a string, not ");
  type_error(message.append(type_name(value)));
}

// Text that goes into `self`: escaped where that is markup and this is not.
std::string inserted(std::string_view method, const Value& self, const Value& value) {
  const std::string_view text = require_text(method, value);
  return text_of(self)->markup && !text_of(value)->markup ? escape_html(text) : std::string(text);
}

void positional_only(std::string_view method, const Arguments& arguments) {
  if (arguments.named.empty()) return;
  std::string message(method);
  type_error(message.append("() takes no keyword arguments"));
}

template <std::string (*Change)(std::string_view)>
Value change(Run& run, const Value& self, const Arguments& arguments) {
  const Bound bound("method", {}, arguments);
  run.spend(self_view(self).size());
  return like(run, self, Change(self_view(self)));
}

template <bool (*Test)(char32_t)>
Value all_characters(Run& run, const Value& self, const Arguments& arguments) {
  const Bound bound("method", {}, arguments);
  std::string_view rest = self_view(self);
  run.spend(rest.size() / 8);
  if (rest.empty()) return false;
  for (; !rest.empty(); rest.remove_prefix(character_bytes(rest))) {
    if (!Test(first_character(rest))) return false;
  }
  return true;
}

// islower and isupper: some character has the case, none has another.
template <bool (*Wanted)(char32_t), bool (*Other)(char32_t)>
Value is_cased(Run& run, const Value& self, const Arguments& arguments) {
  const Bound bound("method", {}, arguments);
  bool found = false;
  std::string_view rest = self_view(self);
  run.spend(rest.size() / 8);
  for (; !rest.empty(); rest.remove_prefix(character_bytes(rest))) {
    const char32_t c = first_character(rest);
    if (Other(c) || is_title(c)) return false;
    found |= Wanted(c);
  }
  return found;
}

Value is_title_text(Run&, const Value& self, const Arguments& arguments) {
  const Bound bound("istitle", {}, arguments);
  bool found = false;
  bool after_cased = false;
  for (std::string_view rest = self_view(self); !rest.empty();
       rest.remove_prefix(character_bytes(rest))) {
    const char32_t c = first_character(rest);
    const bool upper = is_upper(c) || is_title(c);
    if ((upper && after_cased) || (is_lower(c) && !after_cased)) return false;
    after_cased = upper || is_lower(c);
    found |= after_cased;
  }
  return found;
}

Value is_ascii(Run&, const Value& self, const Arguments& arguments) {
  const Bound bound("isascii", {}, arguments);
  const std::string_view text = self_view(self);
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

bool printable_or_empty(std::string_view rest) {
  for (; !rest.empty(); rest.remove_prefix(character_bytes(rest))) {
    if (!is_printable(first_character(rest))) return false;
  }
  return true;
}

Value is_printable_text(Run&, const Value& self, const Arguments& arguments) {
  const Bound bound("isprintable", {}, arguments);
  return printable_or_empty(self_view(self));
}

Value is_identifier(Run&, const Value& self, const Arguments& arguments) {
  const Bound bound("isidentifier", {}, arguments);
  std::string_view rest = self_view(self);
  if (rest.empty() || !is_identifier_start(first_character(rest))) return false;
  for (; !rest.empty(); rest.remove_prefix(character_bytes(rest))) {
    if (!is_identifier_part(first_character(rest))) return false;
  }
  return true;
}

template <bool Left, bool Right>
Value strip_method(Run& run, const Value& self, const Arguments& arguments) {
  positional_only("strip", arguments);
  const Bound bound("strip", {"chars"}, arguments);
  const std::string_view text = self_view(self);
  run.spend(text.size() / 8);
  if (!bound[0] || is<None>(*bound[0]))
    return like(run, self, std::string(strip(text, Left, Right)));
  const std::string_view chars = require_text("strip", *bound[0]);
  if (chars.size() > 4096) unsupported("strip() of more than 4096 bytes of characters");
  return like(run, self, std::string(strip(text, chars, Left, Right)));
}

// Where a method that takes (what, start, stop) looks: byte positions of the given characters.
struct Part {
  std::string_view text;
  std::size_t start_character = 0;
  bool valid = true;  // false: start is beyond the end, where not even "" is found
};

Part part_of(Run& run, std::string_view text, const Bound& bound) {
  run.spend(text.size() / 8);
  if (!bound[1] && !bound[2]) return {text};
  const auto size = static_cast<Int>(count_characters(text));
  const SliceBounds within = slice_bounds(size, bound.at(1, None{}), bound.at(2, None{}), None{});
  if (bound[1] && !is<None>(*bound[1]) && *integer_of(*bound[1]) > size) return {"", 0, false};
  if (within.start > within.stop) return {"", 0, false};
  const std::size_t start = character_offset(text, static_cast<std::size_t>(within.start));
  const std::size_t stop = character_offset(text, static_cast<std::size_t>(within.stop));
  return {text.substr(start, stop - start), static_cast<std::size_t>(within.start)};
}

template <bool Start>
Value starts_or_ends(Run& run, const Value& self, const Arguments& arguments) {
  const std::string_view method = Start ? "startswith" : "endswith";
  positional_only(method, arguments);
  const Bound bound(method, {"prefix", "start", "end"}, arguments, 1);
  const Part part = part_of(run, self_view(self), bound);
  const auto matches = [&](const Value& value) {
    const std::string_view affix = require_text(method, value);
    return part.valid && (Start ? part.text.starts_with(affix) : part.text.ends_with(affix));
  };
  const Sequence* tuple = sequence_of(*bound[0]);
  if (tuple && tuple->type == Sequence::Type::kTuple) {
    return std::any_of(tuple->items.begin(), tuple->items.end(), matches);
  }
  return matches(*bound[0]);
}

// -1: not found.
template <bool Last>
Int find_in(Run& run, std::string_view method, const Value& self, const Arguments& arguments) {
  positional_only(method, arguments);
  const Bound bound(method, {"sub", "start", "end"}, arguments, 1);
  const std::string_view what = require_text(method, *bound[0]);
  const Part part = part_of(run, self_view(self), bound);
  const std::size_t at = Last ? part.text.rfind(what) : part.text.find(what);
  if (!part.valid || at == part.text.npos) return -1;
  return static_cast<Int>(part.start_character + count_characters(part.text.substr(0, at)));
}

template <bool Last>
Value find(Run& run, const Value& self, const Arguments& arguments) {
  return find_in<Last>(run, Last ? "rfind" : "find", self, arguments);
}

template <bool Last>
Value index(Run& run, const Value& self, const Arguments& arguments) {
  const Int at = find_in<Last>(run, Last ? "rindex" : "index", self, arguments);
  if (at < 0) value_error("substring not found");
  return at;
}

Value count(Run& run, const Value& self, const Arguments& arguments) {
  positional_only("count", arguments);
  const Bound bound("count", {"sub", "start", "end"}, arguments, 1);
  const std::string_view what = require_text("count", *bound[0]);
  const Part part = part_of(run, self_view(self), bound);
  if (!part.valid) return Int{0};
  if (what.empty()) return static_cast<Int>(count_characters(part.text)) + 1;
  Int found = 0;
  for (std::size_t at = 0; (at = part.text.find(what, at)) != part.text.npos; at += what.size())
    ++found;
  return found;
}

Value replace(Run& run, const Value& self, const Arguments& arguments) {
  positional_only("replace", arguments);
  const Bound bound("replace", {"old", "new", "count"}, arguments, 2);
  const std::string with = inserted("replace", self, *bound[1]);
  const Int most = bound[2] ? require_integer(*bound[2]) : -1;
  return like(run, self,
              replaced(run, self_view(self), require_text("replace", *bound[0]), with, most));
}

Value join(Run& run, const Value& self, const Arguments& arguments) {
  const Bound bound("join", {"iterable"}, arguments, 1);
  std::string out;
  bool first = true;
  Cursor cursor(run, *bound[0]);
  for (Value item; cursor.next(item); first = false) {
    const std::string piece = text_of(self)->markup && !is<Text>(item)
                                  ? escape_html(to_text(run, item))
                                  : inserted("join", self, item);
    run.spend(self_view(self).size() + piece.size());
    if (!first) out += self_view(self);
    out += piece;
  }
  return like(run, self, std::move(out));
}

Value list_of(Run& run, const Value& self, const std::vector<std::string_view>& parts) {
  std::vector<Value> items;
  items.reserve(parts.size());
  for (std::string_view part : parts) items.push_back(like(run, self, std::string(part)));
  return run.list(std::move(items));
}

template <bool Right>
Value split(Run& run, const Value& self, const Arguments& arguments) {
  const Bound bound("split", {"sep", "maxsplit"}, arguments);
  const Int given = bound[1] ? require_integer(*bound[1]) : -1;
  const auto most =
      given < 0 ? ~std::size_t{0} : static_cast<std::size_t>(std::min(given, Int{1} << 40));
  const std::string_view text = self_view(self);
  run.spend(text.size() / 8);
  if (!bound[0] || is<None>(*bound[0]))
    return list_of(run, self, split_at_space(run, text, most, Right));
  const std::string_view separator = require_text("split", *bound[0]);
  if (separator.empty()) value_error("empty separator");
  return list_of(run, self, split_at(run, text, separator, most, Right));
}

Value split_lines_method(Run& run, const Value& self, const Arguments& arguments) {
  const Bound bound("splitlines", {"keepends"}, arguments);
  return list_of(run, self, split_lines(run, self_view(self), bound[0] && truthy(run, *bound[0])));
}

template <bool Right>
Value partition(Run& run, const Value& self, const Arguments& arguments) {
  positional_only("partition", arguments);
  const Bound bound("partition", {"sep"}, arguments, 1);
  const std::string_view separator = require_text("partition", *bound[0]);
  if (separator.empty()) value_error("empty separator");
  const std::string_view text = self_view(self);
  const std::size_t at = Right ? text.rfind(separator) : text.find(separator);
  const auto part = [&](std::string_view each) { return like(run, self, std::string(each)); };
  if (at == text.npos) {
    return Right ? run.tuple({part(""), part(""), part(text)})
                 : run.tuple({part(text), part(""), part("")});
  }
  return run.tuple(
      {part(text.substr(0, at)), part(separator), part(text.substr(at + separator.size()))});
}

template <bool Prefix>
Value remove_affix(Run& run, const Value& self, const Arguments& arguments) {
  positional_only("removeprefix", arguments);
  const Bound bound("removeprefix", {"affix"}, arguments, 1);
  const std::string_view affix = require_text("removeprefix", *bound[0]);
  std::string_view text = self_view(self);
  if (Prefix && text.starts_with(affix)) text.remove_prefix(affix.size());
  if (!Prefix && text.ends_with(affix)) text.remove_suffix(affix.size());
  return like(run, self, std::string(text));
}

template <Align Side>
Value justify(Run& run, const Value& self, const Arguments& arguments) {
  positional_only("center", arguments);
  const Bound bound("center", {"width", "fillchar"}, arguments, 1);
  const std::string fill = bound[1] ? inserted("center", self, *bound[1]) : " ";
  if (count_characters(fill) != 1)
    type_error("the fill character must be exactly one character long");
  return like(run, self, justified(run, self_view(self), require_integer(*bound[0]), fill, Side));
}

Value zfill(Run& run, const Value& self, const Arguments& arguments) {
  positional_only("zfill", arguments);
  const Bound bound("zfill", {"width"}, arguments, 1);
  std::string_view text = self_view(self);
  std::string sign;
  Int width = require_integer(*bound[0]);
  if (text.starts_with('-') || text.starts_with('+')) {
    sign = std::string(text.substr(0, 1));
    text.remove_prefix(1);
    width -= 1;
  }
  sign += justified(run, text, width, "0", Align::kRight);
  return like(run, self, std::move(sign));
}

Value format(Run& run, const Value& self, const Arguments& arguments) {
  return format_braces(run, *text_of(self), arguments);
}

Value format_map(Run& run, const Value& self, const Arguments& arguments) {
  const Bound bound("format_map", {"mapping"}, arguments, 1);
  Arguments named;
  const Dict* dict = dict_of(*bound[0]);
  if (!dict) unsupported("format_map() of something that is no dict");
  for (const auto& [key, value] : dict->entries) {
    if (const Text* name = text_of(key)) named.named.emplace_back(*name->bytes, value);
  }
  return format_braces(run, *text_of(self), named);
}

struct Entry {
  std::string_view name;
  Method method;
};

constexpr std::array<Entry, 41> kMethods = {{
    {"capitalize", change<capitalize>},
    {"center", justify<Align::kCenter>},
    {"count", count},
    {"endswith", starts_or_ends<false>},
    {"find", find<false>},
    {"format", format},
    {"format_map", format_map},
    {"index", index<false>},
    {"isalnum", all_characters<is_alphanumeric>},
    {"isalpha", all_characters<is_alphabetic>},
    {"isascii", is_ascii},
    {"isdecimal", all_characters<is_decimal>},
    {"isdigit", all_characters<is_digit>},
    {"isidentifier", is_identifier},
    {"islower", is_cased<is_lower, is_upper>},
    {"isprintable", is_printable_text},
    {"isspace", all_characters<is_space>},
    {"istitle", is_title_text},
    {"isupper", is_cased<is_upper, is_lower>},
    {"join", join},
    {"ljust", justify<Align::kLeft>},
    {"lower", change<lower>},
    {"lstrip", strip_method<true, false>},
    {"partition", partition<false>},
    {"removeprefix", remove_affix<true>},
    {"removesuffix", remove_affix<false>},
    {"replace", replace},
    {"rfind", find<true>},
    {"rindex", index<true>},
    {"rjust", justify<Align::kRight>},
    {"rpartition", partition<true>},
    {"rsplit", split<true>},
    {"rstrip", strip_method<false, true>},
    {"split", split<false>},
    {"splitlines", split_lines_method},
    {"startswith", starts_or_ends<true>},
    {"strip", strip_method<true, true>},
    {"swapcase", change<swap_case>},
    {"title", change<title>},
    {"upper", change<upper>},
    {"zfill", zfill},
}};

}  // namespace

Method find_string_method(std::string_view name) {
  for (const Entry& entry : kMethods) {
    if (entry.name == name) return entry.method;
  }
  return nullptr;
}

}  // namespace moiety::jinja
