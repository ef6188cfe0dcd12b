#include "model/tokenizer_normalizer.h"

#include <utf8proc.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

#include "common/check.h"
#include "common/utf8.h"
#include "model/byte_level.h"
#include "model/tokenizer_unicode.h"

namespace moiety {
namespace {

utf8proc_option_t options_of(Normalizer::Form form) {
  int options = UTF8PROC_STABLE;
  const bool compose = form == Normalizer::Form::kNfc || form == Normalizer::Form::kNfkc;
  options |= compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == Normalizer::Form::kNfkc || form == Normalizer::Form::kNfkd) {
    options |= UTF8PROC_COMPAT;
  }
  return static_cast<utf8proc_option_t>(options);
}

void append_normal_form(std::string_view text, Normalizer::Form form, std::string& out) {
  if (text.empty()) return;
  utf8proc_uint8_t* result = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &result, options_of(form));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(result, &std::free);
  MOIETY_CHECK(size >= 0, utf8proc_errmsg(size));  // valid text: only memory can run out
  out.append(reinterpret_cast<const char*>(result), static_cast<std::size_t>(size));
}

// The characters below kTableEnd that a normal form leaves as they are and never joins or exchanges
// with what precedes them: text may be cut before them, and text of nothing else is normal.
class InertCharacters {
 public:
  static const InertCharacters& of(Normalizer::Form form) {
    switch (form) {
      case Normalizer::Form::kNfc:
        return table<Normalizer::Form::kNfc>();
      case Normalizer::Form::kNfd:
        return table<Normalizer::Form::kNfd>();
      case Normalizer::Form::kNfkc:
        return table<Normalizer::Form::kNfkc>();
      case Normalizer::Form::kNfkd:
        break;
    }
    return table<Normalizer::Form::kNfkd>();
  }

  bool contains(char32_t value) const { return value < kTableEnd && inert_[value]; }

 private:
  static constexpr char32_t kTableEnd = 0x30000;

  template <Normalizer::Form form>
  static const InertCharacters& table() {  // made when first needed, in about 10 ms
    static const InertCharacters instance(form);
    return instance;
  }

  explicit InertCharacters(Normalizer::Form form) : inert_(kTableEnd) {
    std::vector<char32_t> followers;  // of other characters in decompositions: they may compose
    for (char32_t value = 0; value < kTableEnd; ++value) {
      if (is_left_alone_by_normal_forms(value)) {
        inert_[value] = true;
        continue;
      }
      utf8proc_int32_t parts[32];
      int boundary = 0;
      const utf8proc_ssize_t count = utf8proc_decompose_char(
          static_cast<utf8proc_int32_t>(value), parts, 32, options_of(form), &boundary);
      const bool itself = count == 1 && static_cast<char32_t>(parts[0]) == value;
      for (utf8proc_ssize_t i = 1; i < count; ++i) {
        followers.push_back(static_cast<char32_t>(parts[i]));
      }
      const bool combines =
          utf8proc_get_property(static_cast<utf8proc_int32_t>(value))->combining_class != 0;
      inert_[value] = !combines && (itself || composes_to_itself(value, form));
    }
    for (const char32_t value : followers) {
      if (value < kTableEnd) inert_[value] = false;
    }
  }

  static bool composes_to_itself(char32_t value, Normalizer::Form form) {
    if (value >= 0xD800 && value < 0xE000) return false;
    std::string text;
    std::string normal;
    append_code_point(value, text);
    append_normal_form(text, form, normal);
    return normal == text;
  }

  std::vector<bool> inert_;
};

std::size_t ascii_prefix(std::string_view text) {
  std::size_t size = 0;
  for (std::uint64_t word = 0; text.size() - size >= sizeof word; size += sizeof word) {
    std::memcpy(&word, text.data() + size, sizeof word);
    if ((word & 0x8080808080808080u) != 0) break;
  }
  while (size < text.size() && static_cast<unsigned char>(text[size]) < 0x80) ++size;
  return size;
}

// Cuts the text into runs that start with an inert character, and normalizes those that hold
// others.
std::string normal_form(std::string_view text, Normalizer::Form form) {
  const InertCharacters& inert = InertCharacters::of(form);
  std::string out;
  out.reserve(text.size());
  std::size_t done = 0;   // what is in `out`
  std::size_t begin = 0;  // of the run
  bool is_normal = true;  // the run holds only its inert character
  const auto end_run = [&](std::size_t end) {
    if (is_normal) return;
    out += text.substr(done, begin - done);
    append_normal_form(text.substr(begin, end - begin), form, out);
    done = end;
    is_normal = true;
  };
  for (std::size_t position = 0; position < text.size();) {
    if (const std::size_t ascii = ascii_prefix(text.substr(position)); ascii > 0) {
      end_run(position);
      position += ascii;
      begin = position - 1;
      continue;
    }
    const CodePoint character = first_code_point(text.substr(position));
    if (inert.contains(character.value)) {
      end_run(position);
      // Nothing composes or changes places with a character that is newer than the tables.
      begin =
          is_left_alone_by_normal_forms(character.value) ? position + character.bytes : position;
    } else {
      is_normal = false;
    }
    position += character.bytes;
  }
  end_run(text.size());
  out += text.substr(done);
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

void append_lower_case(char32_t value, std::string& out) {
  if (value == 0x130) {  // the only letter whose lower case is two characters
    out += "i\xCC\x87";
  } else {
    append_code_point(lower_case(value), out);
  }
}

void append_nmt(char32_t value, std::string& out) {
  const bool is_removed = (value >= 0x1 && value <= 0x8) || value == 0xB ||
                          (value >= 0xE && value <= 0x1F) || value == 0x7F || value == 0x8F ||
                          value == 0x9F;
  if (is_removed) return;
  const bool is_blank = value == 0x9 || value == 0xA || value == 0xC || value == 0xD ||
                        value == 0x1680 || (value >= 0x200B && value <= 0x200F) ||
                        value == 0x2028 || value == 0x2029 || value == 0x2581 || value == 0xFEFF ||
                        value == 0xFFFD;
  append_code_point(is_blank ? U' ' : value, out);
}

void append_bert_clean(char32_t value, std::string& out) {
  if (is_bert_control(value)) return;
  append_code_point(is_white_space(value) ? U' ' : value, out);
}

void append_rewritten(Normalizer::Rewrite rewrite, char32_t value, std::string& out) {
  switch (rewrite) {
    case Normalizer::Rewrite::kLowercase:
      return append_lower_case(value, out);
    case Normalizer::Rewrite::kByteLevel: {
      std::string bytes;
      append_code_point(value, bytes);
      return append_byte_level(bytes, out);
    }
    case Normalizer::Rewrite::kStripAccents:
      if (!is_combining_mark(value)) append_code_point(value, out);
      return;
    case Normalizer::Rewrite::kNmt:
      return append_nmt(value, out);
    case Normalizer::Rewrite::kBertClean:
      return append_bert_clean(value, out);
    case Normalizer::Rewrite::kBertChinese: {
      const std::string_view blank = is_bert_chinese(value) ? " " : "";
      out += blank;
      append_code_point(value, out);
      out += blank;
      return;
    }
    case Normalizer::Rewrite::kBertAccents:
      if (!is_bert_accent(value)) append_code_point(value, out);
      return;
  }
}

std::string rewritten(std::string_view text, Normalizer::Rewrite rewrite, bool& at_start) {
  std::string out;
  out.reserve(text.size());
  for (bool first = true; !text.empty(); first = false) {
    const CodePoint character = first_code_point(text);
    append_rewritten(rewrite, character.value, out);
    if (first && out.empty()) at_start = false;
    text.remove_prefix(character.bytes);
  }
  return out;
}

std::string_view strip(std::string_view text, bool left, bool right) {
  while (left && !text.empty() && is_white_space(first_code_point(text).value)) {
    text.remove_prefix(first_code_point(text).bytes);
  }
  while (right && !text.empty() && is_white_space(last_code_point(text).value)) {
    text.remove_suffix(last_code_point(text).bytes);
  }
  return text;
}

Result<bool> removes_start(const Regex& pattern, std::string_view text, MatchBudget& budget) {
  std::vector<Regex::Span> matches;
  MOIETY_TRY(pattern.find_all(text, matches, budget));
  return !matches.empty() && matches[0].begin == 0 && matches[0].end > 0;
}

}  // namespace

void Normalizer::add_form(Form form) { steps_.emplace_back(form); }

void Normalizer::add_rewrite(Rewrite rewrite) { steps_.emplace_back(rewrite); }

void Normalizer::add_prepend(std::string content) {
  steps_.emplace_back(Prepend{std::move(content)});
}

void Normalizer::add_strip(bool left, bool right) { steps_.emplace_back(Strip{left, right}); }

void Normalizer::add_replace(Regex pattern, std::string content) {
  steps_.emplace_back(Replace{std::move(pattern), std::move(content)});
}

Result<std::string> Normalizer::apply(std::string_view text) const {
  bool at_start = true;
  MatchBudget budget(text.size());
  return apply(text, at_start, budget);
}

Result<std::string> Normalizer::apply(std::string_view text,
                                      bool& at_start,
                                      MatchBudget& budget) const {
  const std::size_t most_bytes = most_rewritten_bytes(text.size());
  std::string out(text);
  for (const auto& step : steps_) {
    if (const auto* form = std::get_if<Form>(&step)) {
      out = normal_form(out, *form);
    } else if (const auto* rule = std::get_if<Replace>(&step)) {
      if (rule->content.empty()) {
        MOIETY_ASSIGN(const bool start_goes, removes_start(rule->pattern, out, budget));
        if (start_goes) at_start = false;
      }
      MOIETY_ASSIGN(out, rule->pattern.replace_all(out, rule->content, most_bytes, budget));
    } else if (const auto* prepend = std::get_if<Prepend>(&step)) {
      if (!out.empty()) out.insert(0, prepend->content);
    } else if (const auto* ends = std::get_if<Strip>(&step)) {
      const std::string_view kept = strip(out, ends->left, ends->right);
      if (kept.data() != out.data()) at_start = false;
      out = std::string(kept);
    } else {
      out = rewritten(out, std::get<Rewrite>(step), at_start);
    }
    if (out.size() > most_bytes) return rewritten_too_long(most_bytes);
  }
  return out;
}

}  // namespace moiety
