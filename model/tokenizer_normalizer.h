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

  void add_form(Form form);
  /// Full, context-free lower case, as Rust's char::to_lowercase.
  void add_lowercase();
  void add_replace(Regex pattern, std::string content);

  /// True when apply() returns its input.
  bool empty() const { return steps_.empty(); }
  /// `text` is valid UTF-8, and so is the result.
  std::string apply(std::string_view text) const;

 private:
  struct Replace {
    Regex pattern;
    std::string content;
  };
  struct Lowercase {};
  std::vector<std::variant<Form, Lowercase, Replace>> steps_;
};

}  // namespace moiety
