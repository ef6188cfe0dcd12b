#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace moiety {

/// An inclusive range of code points.
struct CodePointRange {
  char32_t first = 0;
  char32_t last = 0;
};

/// The White_Space property, which is what `\s` means in tokenizer.json (PCRE2's `\s` has U+180E
/// too).
bool is_white_space(char32_t value);

/// Alphabetic, marks, decimal digits, connector punctuation, joiners: `\w` of added tokens'
/// single_word.
bool is_word_character(char32_t value);

/// True for characters whose normal forms are newer than the tables of PyPI tokenizers (Unicode
/// 10): normalizing there leaves them alone, and nothing composes or changes places with them.
bool is_left_alone_by_normal_forms(char32_t value);

/// Characters of the pre-tokenizers Punctuation and BertPreTokenizer, of the normalizers
/// StripAccents and BertNormalizer (accents: after NFD).
bool is_punctuation(char32_t value);
bool is_combining_mark(char32_t value);
bool is_bert_accent(char32_t value);
bool is_bert_control(char32_t value);
bool is_bert_chinese(char32_t value);

/// A number for the script of a character as the pre-tokenizer UnicodeScripts has it; -1: any.
int script_of(char32_t value);

/// A set of characters for patterns, as of Unicode 16. PCRE2 10.42 knows Unicode 14, so newer
/// characters are spelled out.
struct CharacterSet {
  std::string body = {};    ///< of a PCRE2 class
  std::string except = {};  ///< likewise: not these; mostly empty
  bool negated = false;     ///< all other characters
};

CharacterSet white_space_set();        ///< `\s`
CharacterSet decimal_digit_set();      ///< `\d`
CharacterSet word_set(bool in_class);  ///< `\w`, which in a class is another one
/// \p{name}: a general category, a script, a block (InX), or one of some other properties; case,
/// blanks, `_` and `-` do not count. nullopt: not known.
std::optional<CharacterSet> property_set(std::string_view name);
/// [:name:]
std::optional<CharacterSet> posix_set(std::string_view name);

}  // namespace moiety
