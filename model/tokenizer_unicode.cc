#include "model/tokenizer_unicode.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <span>

#include "model/tokenizer_tables.h"

namespace moiety {
namespace {

constexpr CodePointRange kWhiteSpace[] = {
    {0x9, 0xD},       {0x20, 0x20},     {0x85, 0x85},     {0xA0, 0xA0},     {0x1680, 0x1680},
    {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000},
};

// Names of general categories, in lower case and without _, and PCRE2's.
struct Name {
  std::string_view names;
  std::string_view name;
};
constexpr Name kCategories[] = {
    {"l letter", "L"},
    {"lu uppercaseletter", "Lu"},
    {"ll lowercaseletter", "Ll"},
    {"lt titlecaseletter", "Lt"},
    {"lm modifierletter", "Lm"},
    {"lo otherletter", "Lo"},
    {"m mark combiningmark", "M"},
    {"mn nonspacingmark", "Mn"},
    {"mc spacingmark", "Mc"},
    {"me enclosingmark", "Me"},
    {"n number", "N"},
    {"nd decimalnumber digit", "Nd"},
    {"nl letternumber", "Nl"},
    {"no othernumber", "No"},
    {"p punctuation punct", "P"},
    {"pc connectorpunctuation", "Pc"},
    {"pd dashpunctuation", "Pd"},
    {"ps openpunctuation", "Ps"},
    {"pe closepunctuation", "Pe"},
    {"pi initialpunctuation", "Pi"},
    {"pf finalpunctuation", "Pf"},
    {"po otherpunctuation", "Po"},
    {"s symbol", "S"},
    {"sm mathsymbol", "Sm"},
    {"sc currencysymbol", "Sc"},
    {"sk modifiersymbol", "Sk"},
    {"so othersymbol", "So"},
    {"z separator", "Z"},
    {"zs spaceseparator", "Zs"},
    {"zl lineseparator", "Zl"},
    {"zp paragraphseparator", "Zp"},
    {"cc control cntrl", "Cc"},
    {"cf format", "Cf"},
    {"co privateuse", "Co"},
};
constexpr Name kProperties[] = {
    {"alphabetic alpha", "Alphabetic"},
    {"uppercase upper", "Uppercase"},
    {"lowercase lower", "Lowercase"},
    {"whitespace space", "White_Space"},
    {"emoji", "Emoji"},
    {"emojipresentation", "Emoji_Presentation"},
    {"emojimodifier", "Emoji_Modifier"},
    {"emojimodifierbase", "Emoji_Modifier_Base"},
    {"emojicomponent", "Emoji_Component"},
    {"extendedpictographic", "Extended_Pictographic"},
    {"ideographic", "Ideographic"},
    {"unifiedideograph", "Unified_Ideograph"},
    {"math", "Math"},
    {"dash", "Dash"},
    {"hexdigit", "Hex_Digit"},
    {"asciihexdigit xdigit", "ASCII_Hex_Digit"},
};
// Characters of words that are no letters, marks, decimal digits or letter-like numbers.
constexpr std::string_view kEnclosedLetters =
    "\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}";

// Characters that have a decomposition, a composition or a combining class since Unicode 11 or
// later.
constexpr CodePointRange kNormalizedSince10[] = {
    {0x558, 0x558},     {0x58B, 0x58C},     {0x5C8, 0x5C9},     {0x7FD, 0x7FD},
    {0x897, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},     {0xC3C, 0xC3C},
    {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},   {0x1ABF, 0x1AF0},
    {0x1DF6, 0x1DFA},   {0x209D, 0x209F},   {0x32FF, 0x32FF},   {0xA7F1, 0xA7F4},
    {0xA82C, 0xA82C},   {0xAB69, 0xAB69},   {0x105C9, 0x105C9}, {0x105D2, 0x105D2},
    {0x105DA, 0x105DA}, {0x105E4, 0x105E4}, {0x10781, 0x10785}, {0x10787, 0x107B0},
    {0x107B2, 0x107BF}, {0x10D24, 0x10D27}, {0x10D69, 0x10D6D}, {0x10EAB, 0x10EAC},
    {0x10ECB, 0x10ECF}, {0x10EF0, 0x10EFB}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50},
    {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x11382, 0x11385},
    {0x1138B, 0x1138B}, {0x1138E, 0x1138E}, {0x11390, 0x11391}, {0x113C2, 0x113C2},
    {0x113C5, 0x113C5}, {0x113C7, 0x113C8}, {0x113CE, 0x113D0}, {0x1145E, 0x1145E},
    {0x11839, 0x1183A}, {0x11935, 0x11935}, {0x11938, 0x11938}, {0x1193D, 0x1193E},
    {0x11943, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47},
    {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45}, {0x11D97, 0x11D97},
    {0x11F41, 0x11F42}, {0x1611E, 0x1611E}, {0x16121, 0x16129}, {0x1612F, 0x1612F},
    {0x16D63, 0x16D63}, {0x16D67, 0x16D6A}, {0x16FF0, 0x16FF1}, {0x1B123, 0x1B126},
    {0x1CCD6, 0x1CCF9}, {0x1D127, 0x1D128}, {0x1D250, 0x1D252}, {0x1D25B, 0x1D25C},
    {0x1D25F, 0x1D25F}, {0x1D280, 0x1D281}, {0x1D6A6, 0x1D6A6}, {0x1DF95, 0x1DF95},
    {0x1DFCD, 0x1DFFF}, {0x1E030, 0x1E06D}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136},
    {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}, {0x1E5EE, 0x1E5EF},
    {0x1E6E3, 0x1E6E3}, {0x1E6E6, 0x1E6E6}, {0x1E6EE, 0x1E6EF}, {0x1E6F5, 0x1E6F5},
    {0x1F16C, 0x1F16C}, {0x1FBF0, 0x1FBF9},
};

bool contains(std::span<const CodePointRange> ranges, char32_t value) {
  const auto after = std::upper_bound(
      ranges.begin(), ranges.end(), value,
      [](char32_t wanted, const CodePointRange& range) { return wanted < range.first; });
  return after != ranges.begin() && value <= std::prev(after)->last;
}

/// True when `word` is one of the words of `list`, which have a space between them.
bool has_word(std::string_view list, std::string_view word) {
  while (!list.empty()) {
    const std::size_t size = std::min(list.find(' '), list.size());
    if (list.substr(0, size) == word) return true;
    list.remove_prefix(std::min(size + 1, list.size()));
  }
  return false;
}

std::string range_class(char32_t first, char32_t last) {
  std::string body = fmt::format("\\x{{{:x}}}", static_cast<std::uint32_t>(first));
  if (last > first) body += fmt::format("-\\x{{{:x}}}", static_cast<std::uint32_t>(last));
  return body;
}

/// The class body of the newer characters that `belongs` takes.
template <class Belongs>
std::string newer_class(Belongs belongs) {
  std::string body;
  for (const auto& newer : unicode_tables::newer_characters()) {
    if (belongs(newer)) body += range_class(newer.first, newer.last);
  }
  return body;
}

std::string category_class(std::string_view category) {
  return fmt::format("\\p{{{}}}", category) +
         newer_class([&](const auto& newer) { return newer.category.starts_with(category); });
}

std::string categories_class(std::initializer_list<std::string_view> categories) {
  std::string body;
  for (std::string_view category : categories) body += category_class(category);
  return body;
}

template <class Table>
auto find_name(const Table& table, std::string_view wanted) {
  return std::find_if(std::begin(table), std::end(table),
                      [&](const auto& entry) { return has_word(entry.names, wanted); });
}

}  // namespace

bool is_white_space(char32_t value) { return contains(kWhiteSpace, value); }

bool is_punctuation(char32_t value) { return contains(unicode_tables::punctuation(), value); }

bool is_combining_mark(char32_t value) {
  return contains(unicode_tables::combining_marks(), value);
}

bool is_bert_accent(char32_t value) { return contains(unicode_tables::bert_accents(), value); }

bool is_bert_control(char32_t value) { return contains(unicode_tables::bert_control(), value); }

bool is_bert_chinese(char32_t value) { return contains(unicode_tables::bert_chinese(), value); }

int script_of(char32_t value) {
  const auto ranges = unicode_tables::scripts();
  const auto after =
      std::upper_bound(ranges.begin(), ranges.end(), value,
                       [](char32_t wanted, const auto& range) { return wanted < range.first; });
  if (after == ranges.begin() || value > std::prev(after)->last) return -1;
  return std::prev(after)->script;
}

bool is_left_alone_by_normal_forms(char32_t value) { return contains(kNormalizedSince10, value); }

bool is_word_character(char32_t value) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(value))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    case UTF8PROC_CATEGORY_SO:  // the enclosed letters are Other_Alphabetic
      return (value >= 0x24B6 && value <= 0x24E9) || (value >= 0x1F130 && value <= 0x1F149) ||
             (value >= 0x1F150 && value <= 0x1F169) || (value >= 0x1F170 && value <= 0x1F189);
    case UTF8PROC_CATEGORY_CN: {
      const auto newer = unicode_tables::newer_characters();
      return std::any_of(newer.begin(), newer.end(), [&](const auto& range) {
        const bool of_words = range.category.starts_with('L') || range.category.starts_with('M') ||
                              range.category == "Nd";
        return of_words && value >= range.first && value <= range.last;
      });
    }
    default:
      return value == 0x200C || value == 0x200D;
  }
}

CharacterSet white_space_set() {
  CharacterSet set;
  for (CodePointRange range : kWhiteSpace) set.body += range_class(range.first, range.last);
  return set;
}

CharacterSet decimal_digit_set() { return {.body = category_class("Nd")}; }

CharacterSet word_set(bool in_class) {
  CharacterSet set{.body = categories_class({"L", "M", "Nd", "Nl", "Pc"})};
  set.body += kEnclosedLetters;
  // A quirk of Oniguruma: superscripts and fractions of Latin-1, but not where the set is in [].
  if (!in_class) set.body += "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}";
  return set;
}

std::optional<CharacterSet> property_set(std::string_view name) {
  std::string wanted;
  for (const char c : name) {
    if (c == ' ' || c == '_' || c == '-') continue;
    wanted += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  if (wanted == "any") return CharacterSet{.body = "\\x{0}-\\x{10ffff}"};
  if (wanted == "ascii") return CharacterSet{.body = "\\x{0}-\\x{7f}"};
  if (wanted == "word") return word_set(false);
  if (wanted == "alnum") {
    std::optional<CharacterSet> set = property_set("alphabetic");
    set->body += category_class("Nd");
    return set;
  }
  if (wanted == "blank") return CharacterSet{.body = "\\t\\p{Zs}"};
  if (wanted == "lc" || wanted == "casedletter") {
    return CharacterSet{.body = categories_class({"Lu", "Ll", "Lt"})};
  }
  if (wanted == "c" || wanted == "other") {
    return CharacterSet{.body = categories_class({"L", "M", "N", "P", "S", "Z"}), .negated = true};
  }
  if (wanted == "cn" || wanted == "unassigned") {
    return CharacterSet{.body = categories_class({"L", "M", "N", "P", "S", "Z", "Cc", "Cf", "Co"}),
                        .negated = true};
  }
  if (const auto found = find_name(kCategories, wanted); found != std::end(kCategories)) {
    CharacterSet set{.body = category_class(found->name)};
    if (found->name == "Mn") set.except = "\\x{1171e}";  // which Unicode 16 has moved to Mc
    return set;
  }
  if (const auto found = find_name(kProperties, wanted); found != std::end(kProperties)) {
    return CharacterSet{.body = fmt::format("\\p{{{}}}", found->name) +
                                newer_class([&](const auto& newer) {
                                  return has_word(newer.properties, found->name);
                                })};
  }
  const auto scripts = unicode_tables::script_names();
  if (const auto found = find_name(scripts, wanted); found != scripts.end()) {
    CharacterSet set;
    if (found->in_pcre2) set.body = fmt::format("\\p{{sc:{}}}", found->name);
    set.body += newer_class([&](const auto& newer) { return newer.script == found->name; });
    return set;
  }
  const auto blocks = unicode_tables::blocks();
  const auto block = std::find_if(blocks.begin(), blocks.end(), [&](const auto& each) {
    return wanted.starts_with("in") && wanted.substr(2) == each.name;
  });
  if (block != blocks.end()) return CharacterSet{.body = range_class(block->first, block->last)};
  return std::nullopt;
}

std::optional<CharacterSet> posix_set(std::string_view name) {
  if (name == "word") return word_set(true);
  if (name == "punct") return CharacterSet{.body = categories_class({"P", "S"})};
  for (std::string_view known : {"alnum", "alpha", "blank", "cntrl", "digit", "lower", "space",
                                 "upper", "xdigit", "ascii"}) {
    if (name == known) return property_set(name);
  }
  return std::nullopt;
}

}  // namespace moiety
