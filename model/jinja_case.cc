// Character properties and cases of jinja_text.h.

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "common/utf8.h"
#include "model/jinja_case_tables.h"
#include "model/jinja_text.h"

namespace moiety::jinja {
namespace {

struct Range {
  char32_t first, last;
};

bool in_ranges(char32_t c, std::span<const Range> ranges) {
  return std::any_of(ranges.begin(), ranges.end(),
                     [c](Range r) { return c >= r.first && c <= r.last; });
}

// DerivedCoreProperties.txt: Lowercase and Uppercase characters that are not of category Ll or Lu.
constexpr std::array<Range, 22> kOtherLowercase = {
    {{0xAA, 0xAA},       {0xBA, 0xBA},      {0x2B0, 0x2B8},   {0x2C0, 0x2C1},   {0x2E0, 0x2E4},
     {0x345, 0x345},     {0x37A, 0x37A},    {0x1D2C, 0x1D6A}, {0x1D78, 0x1D78}, {0x1D9B, 0x1DBF},
     {0x2071, 0x2071},   {0x207F, 0x207F},  {0x2090, 0x209C}, {0x2170, 0x217F}, {0x24D0, 0x24E9},
     {0x2C7C, 0x2C7D},   {0xA69C, 0xA69D},  {0xA770, 0xA770}, {0xA7F8, 0xA7F9}, {0xAB5C, 0xAB5F},
     {0x10780, 0x10780}, {0x10783, 0x107BA}}};
constexpr std::array<Range, 5> kOtherUppercase = {{{0x2160, 0x216F},
                                                   {0x24B6, 0x24CF},
                                                   {0x1F130, 0x1F149},
                                                   {0x1F150, 0x1F169},
                                                   {0x1F170, 0x1F189}}};

// UnicodeData.txt: Numeric_Type=Digit beyond category Nd.
constexpr std::array<Range, 21> kOtherDigits = {
    {{0xB2, 0xB3},       {0xB9, 0xB9},       {0x1369, 0x1371},   {0x19DA, 0x19DA},
     {0x2070, 0x2070},   {0x2074, 0x2079},   {0x2080, 0x2089},   {0x2460, 0x2468},
     {0x2474, 0x247C},   {0x2488, 0x2490},   {0x24EA, 0x24EA},   {0x24F5, 0x24FD},
     {0x24FF, 0x24FF},   {0x2776, 0x277E},   {0x2780, 0x2788},   {0x278A, 0x2792},
     {0x10A40, 0x10A43}, {0x10E60, 0x10E68}, {0x11052, 0x1105A}, {0x1F100, 0x1F10A},
     {0x1F10A, 0x1F10A}}};

// WordBreakProperty.txt: MidLetter, MidNumLet, Single_Quote, which are case-ignorable.
constexpr std::array<char32_t, 15> kMidLetters = {0x27,   0x2E,   0x3A,   0xB7,   0x387,
                                                  0x55F,  0x5F4,  0x2018, 0x2019, 0x2024,
                                                  0x2027, 0xFE13, 0xFE52, 0xFE55, 0xFF07};

utf8proc_category_t category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

bool is_cased(char32_t c) { return is_lower(c) || is_upper(c) || is_title(c); }

bool is_case_ignorable(char32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
      return true;
    default:
      return c == 0xFF0E || c == 0xFF1A ||
             std::find(kMidLetters.begin(), kMidLetters.end(), c) != kMidLetters.end();
  }
}

void append(std::u32string_view characters, std::string& out) {
  for (char32_t c : characters) append_code_point(c, out);
}

enum class Case { kUpper, kLower, kTitle };

// Appends the character at `position` in another case. Lower case of a final sigma depends on its
// neighbours: `after_cased` says whether a cased character is before it, not counting
// case-ignorable ones.
void append_cased(
    std::string_view text, std::size_t position, Case to, bool after_cased, std::string& out) {
  const std::string_view rest = text.substr(position);
  const char32_t c = first_character(rest);
  if (c < 0x80) {
    const bool change = to == Case::kLower ? c >= 'A' && c <= 'Z' : c >= 'a' && c <= 'z';
    out += static_cast<char>(change ? c ^ 0x20u : c);
    return;
  }
  if (c == 0xFFFD) {  // also stands for bytes that are not UTF-8
    out += rest.substr(0, character_bytes(rest));
    return;
  }
  const auto code = static_cast<utf8proc_int32_t>(c);
  if (to == Case::kLower) {
    if (c == 0x130) return append(U"i\u0307", out);
    if (c == 0x3A3) {
      bool before_cased = false;
      for (std::size_t i = position + 2; i < text.size(); i += character_bytes(text.substr(i))) {
        const char32_t after = first_character(text.substr(i));
        if (is_case_ignorable(after)) continue;
        before_cased = is_cased(after);
        break;
      }
      return append_code_point(after_cased && !before_cased ? 0x3C2 : 0x3C3, out);
    }
    return append_code_point(static_cast<char32_t>(utf8proc_tolower(code)), out);
  }
  if (const SpecialCase* special = find_special_case(c)) {
    return append(to == Case::kUpper ? special->upper : special->title, out);
  }
  const auto other = to == Case::kUpper ? utf8proc_toupper(code) : utf8proc_totitle(code);
  append_code_point(static_cast<char32_t>(other), out);
}

template <class Choose>  // Choose(c, previous is cased) -> Case
std::string change_case(std::string_view text, Choose choose) {
  std::string out;
  out.reserve(text.size());
  bool previous_cased = false;
  bool after_cased = false;
  for (std::size_t i = 0; i < text.size(); i += character_bytes(text.substr(i))) {
    const char32_t c = first_character(text.substr(i));
    append_cased(text, i, choose(c, previous_cased), after_cased, out);
    previous_cased = is_cased(c);
    if (previous_cased || !is_case_ignorable(c)) after_cased = previous_cased;
  }
  return out;
}

}  // namespace

std::string upper(std::string_view text) {
  return change_case(text, [](char32_t, bool) { return Case::kUpper; });
}

std::string lower(std::string_view text) {
  return change_case(text, [](char32_t, bool) { return Case::kLower; });
}

std::string capitalize(std::string_view text) {
  bool first = true;
  return change_case(text, [&](char32_t, bool) {
    return std::exchange(first, false) ? Case::kTitle : Case::kLower;
  });
}

std::string title(std::string_view text) {
  return change_case(text,
                     [](char32_t, bool cased) { return cased ? Case::kLower : Case::kTitle; });
}

std::string swap_case(std::string_view text) {
  return change_case(text,
                     [](char32_t c, bool) { return is_upper(c) ? Case::kLower : Case::kUpper; });
}

bool is_alphabetic(char32_t c) {
  const auto kind = category(c);
  return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
}

bool is_decimal(char32_t c) { return category(c) == UTF8PROC_CATEGORY_ND; }

bool is_digit(char32_t c) { return is_decimal(c) || in_ranges(c, kOtherDigits); }

bool is_lower(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_LL || in_ranges(c, kOtherLowercase);
}

bool is_upper(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_LU || in_ranges(c, kOtherUppercase);
}

bool is_title(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LT; }

bool is_alphanumeric(char32_t c) {
  const auto kind = category(c);
  return is_alphabetic(c) || (kind >= UTF8PROC_CATEGORY_ND && kind <= UTF8PROC_CATEGORY_NO);
}

bool is_identifier_start(char32_t c) {
  return c == '_' || is_alphabetic(c) || category(c) == UTF8PROC_CATEGORY_NL;
}

bool is_identifier_part(char32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return is_identifier_start(c);
  }
}

bool is_printable(char32_t c) {
  if (c < 0x7F) return c >= 0x20;
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

}  // namespace moiety::jinja
