#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "model/tokenizer_regex.h"

namespace moiety {

/// The normalizer of a tokenizer.json: a chain of rewrites of the text. Immutable, thread-safe.
/// Normal forms are those of Unicode 9, lower case that of Unicode 17, as in PyPI tokenizers.
class Normalizer {
 public:
  enum class Form { kNfc, kNfd, kNfkc, kNfkd };
  /// Rewriting character by character.
  enum class Rewrite {
    kLowercase,     ///< full, context-free lower case, as Rust's char::to_lowercase
    kByteLevel,     ///< spells bytes as characters (byte_level.h)
    kStripAccents,  ///< takes combining marks away
    kNmt,           ///< SentencePiece's: some controls away, other blanks as spaces
    // BertNormalizer's steps, of which the third follows NFD:
    kBertClean,    ///< controls away, other blanks as spaces
    kBertChinese,  ///< spaces around CJK ideographs
    kBertAccents,  ///< takes nonspacing marks away
  };

  void add_form(Form form);
  void add_rewrite(Rewrite rewrite);
  void add_replace(Regex pattern, std::string content);
  /// Puts `content` before every text that is not empty.
  void add_prepend(std::string content);
  /// Takes white space off the ends.
  void add_strip(bool left, bool right);

  /// True when apply() returns its input.
  bool empty() const { return steps_.empty(); }
  /// `text` is valid UTF-8, and so is the result. `at_start` becomes false when the start of the
  /// text is taken away. kResourceExhausted: a pattern failed (see Regex::find_all), or a step made
  /// more than most_rewritten_bytes of the text.
  Result<std::string> apply(std::string_view text, bool& at_start, MatchBudget& budget) const;
  Result<std::string> apply(std::string_view text) const;

 private:
  struct Replace {
    Regex pattern;
    std::string content;
  };
  struct Prepend {
    std::string content;
  };
  struct Strip {
    bool left;
    bool right;
  };
  std::vector<std::variant<Form, Rewrite, Replace, Prepend, Strip>> steps_;
};

}  // namespace moiety
