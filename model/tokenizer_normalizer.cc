#include "model/tokenizer_normalizer.h"

#include <utf8proc.h>

#include <cstdlib>
#include <memory>
#include <utility>

#include "common/check.h"
#include "model/tokenizer_unicode.h"
#include "model/utf8.h"

namespace moiety {
namespace {

void append_normal_form(std::string_view text, Normalizer::Form form, std::string& out) {
  if (text.empty()) return;
  int options = UTF8PROC_STABLE;
  const bool compose = form == Normalizer::Form::kNfc || form == Normalizer::Form::kNfkc;
  options |= compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == Normalizer::Form::kNfkc || form == Normalizer::Form::kNfkd) {
    options |= UTF8PROC_COMPAT;
  }
  utf8proc_uint8_t* result = nullptr;
  const utf8proc_ssize_t size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                             static_cast<utf8proc_ssize_t>(text.size()), &result,
                                             static_cast<utf8proc_option_t>(options));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(result, &std::free);
  MOIETY_CHECK(size >= 0, utf8proc_errmsg(size));  // valid text: only memory can run out
  out.append(reinterpret_cast<const char*>(result), static_cast<std::size_t>(size));
}

std::string normal_form(std::string_view text, Normalizer::Form form) {
  std::string out;
  std::size_t done = 0;
  for (std::size_t position = 0; position < text.size();) {
    const CodePoint character = first_code_point(text.substr(position));
    if (is_left_alone_by_normal_forms(character.value)) {
      append_normal_form(text.substr(done, position - done), form, out);
      append_code_point(character.value, out);
      done = position + character.bytes;
    }
    position += character.bytes;
  }
  append_normal_form(text.substr(done), form, out);
  return out;
}

// utf8proc 2.8 knows Unicode 15; these letters came with 16 and 17.
char32_t lower_case(char32_t value) {
  switch (value) {
    case 0x1C89:
    case 0xA7CC:
    case 0xA7CE:
    case 0xA7D2:
    case 0xA7D4:
    case 0xA7DA:
      return value + 1;
    case 0xA7CB:
      return 0x264;
    case 0xA7DC:
      return 0x19B;
    default:
      break;
  }
  if (value >= 0x10D50 && value <= 0x10D65) return value + 0x20;
  if (value >= 0x16EA0 && value <= 0x16EB8) return value + 0x1B;
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(value)));
}

std::string lower_case(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const CodePoint character = first_code_point(text);
    if (character.value == 0x130) {  // the only letter whose lower case is two characters
      out += "i\xCC\x87";
    } else {
      append_code_point(lower_case(character.value), out);
    }
    text.remove_prefix(character.bytes);
  }
  return out;
}

std::string replace(std::string_view text, const Regex& pattern, std::string_view content) {
  std::vector<Regex::Span> matches;
  pattern.find_all(text, matches);
  std::string out;
  std::size_t done = 0;
  for (const Regex::Span& match : matches) {
    out += text.substr(done, match.begin - done);
    out += content;
    done = match.end;
  }
  out += text.substr(done);
  return out;
}

}  // namespace

void Normalizer::add_form(Form form) { steps_.emplace_back(form); }

void Normalizer::add_lowercase() { steps_.emplace_back(Lowercase{}); }

void Normalizer::add_replace(Regex pattern, std::string content) {
  steps_.emplace_back(Replace{std::move(pattern), std::move(content)});
}

std::string Normalizer::apply(std::string_view text) const {
  std::string out(text);
  for (const auto& step : steps_) {
    if (const auto* form = std::get_if<Form>(&step)) {
      out = normal_form(out, *form);
    } else if (const auto* rule = std::get_if<Replace>(&step)) {
      out = replace(out, rule->pattern, rule->content);
    } else {
      out = lower_case(out);
    }
  }
  return out;
}

}  // namespace moiety
