#pragma once

#include <span>
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
std::span<const CodePointRange> white_space_ranges();
bool is_white_space(char32_t value);

/// Alphabetic, marks, decimal digits, connector punctuation, joiners: `\w` of added tokens'
/// single_word.
bool is_word_character(char32_t value);

/// True for characters whose normal forms are newer than the tables of PyPI tokenizers (Unicode
/// 10): normalizing there leaves them alone, and nothing composes or changes places with them.
bool is_left_alone_by_normal_forms(char32_t value);

/// True for a general category that patterns may name: "L", "Lu", "Nd", ...; not the ones that hold
/// unassigned code points ("C", "Cn") or surrogates.
bool is_known_category(std::string_view category);

/// A PCRE2 class body for `category` as of Unicode 16: \p{category} and the ranges that were
/// assigned since Unicode 14, which is what older PCRE2 (10.40 to 10.42) knows.
std::string category_class(std::string_view category);

}  // namespace moiety
