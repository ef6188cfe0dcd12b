#pragma once

#include <deque>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "model/tokenizer_regex.h"

namespace moiety {

/// What becomes of a match of a split pattern ("delimiter").
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

/// The pre_tokenizer of a tokenizer.json: cuts text into the pieces that BPE sees, without the step
/// that spells bytes as characters (BpeModel takes bytes). Immutable, thread-safe.
class PreTokenizer {
 public:
  /// Cuts each piece at the matches of `pattern`; `invert` swaps matches and what lies between
  /// them.
  void add_split(Regex pattern, SplitBehavior behavior, bool invert);
  /// Puts a space before each piece that does not start with one.
  void add_prefix_space();

  /// The pieces of `text` (valid UTF-8), none of them empty. They point into `text` or into strings
  /// that were appended to `storage`.
  std::vector<std::string_view> apply(std::string_view text,
                                      std::deque<std::string>& storage) const;

 private:
  struct Split {
    Regex pattern;
    SplitBehavior behavior;
    bool invert;
  };
  struct PrefixSpace {};
  std::vector<std::variant<Split, PrefixSpace>> steps_;
};

}  // namespace moiety
