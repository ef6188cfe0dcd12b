#pragma once

#include <span>
#include <string_view>

#include "model/tokenizer_unicode.h"

/// Tables that tests/golden/tokenizer_tables.py finds by asking PyPI tokenizers; each is in order.
namespace moiety::unicode_tables {

/// Characters that Oniguruma (Unicode 16) knows more about than PCRE2 10.42 (Unicode 14).
struct NewerCharacters {
  char32_t first;  // inclusive
  char32_t last;
  std::string_view category;    // what they are there and not here: "Lo", or empty
  std::string_view script;      // "Han", or empty
  std::string_view properties;  // "Alphabetic Ideographic", or empty
};
std::span<const NewerCharacters> newer_characters();

struct ScriptName {
  std::string_view names;  // that patterns may use, in lower case and without _
  std::string_view name;   // PCRE2's
  bool in_pcre2;
};
std::span<const ScriptName> script_names();

struct BlockName {
  char32_t first;  // inclusive
  char32_t last;
  std::string_view name;  // in lower case, without blanks and -
};
std::span<const BlockName> blocks();  // all but those of surrogates

std::span<const CodePointRange> punctuation();      // Punctuation, BertPreTokenizer
std::span<const CodePointRange> combining_marks();  // StripAccents
std::span<const CodePointRange> bert_accents();     // BertNormalizer's strip_accents, after NFD
std::span<const CodePointRange> bert_control();     // what its clean_text takes away
std::span<const CodePointRange> bert_chinese();     // what its handle_chinese_chars spaces out

/// The pre-tokenizer UnicodeScripts: numbers of scripts. What is in no range belongs to any.
struct ScriptRange {
  char32_t first;  // inclusive
  char32_t last;
  int script;
};
std::span<const ScriptRange> scripts();

}  // namespace moiety::unicode_tables
