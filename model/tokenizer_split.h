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
  enum class Prepend { kNever, kFirst, kAlways };

  /// Buffers that calls reuse, and the text of pieces that are not parts of the input.
  class Scratch {
    friend class PreTokenizer;
    struct Part {  // a match, or what lies between two
      std::size_t begin;
      std::size_t end;
      bool is_match;
    };
    std::vector<std::string_view> pieces;
    std::vector<std::string_view> cut;
    std::vector<Regex::Span> matches;
    std::vector<Part> parts;
    std::deque<std::string> texts;
  };

  /// Cuts each piece at the matches of `pattern`; `invert` swaps matches and what lies between
  /// them.
  void add_split(Regex pattern, SplitBehavior behavior, bool invert);
  /// Puts a space before each piece that does not start with one.
  void add_prefix_space();
  /// Replaces each space by `mark` and puts one before pieces that do not start with it: before
  /// none, before the one at the start of the text, or before all.
  void add_metaspace(std::string mark, Prepend prepend);

  /// The pieces of `text` (valid UTF-8), none of them empty. They point into `text` or `scratch`
  /// and live until its next use. `at_start`: nothing of the whole text precedes `text`.
  const std::vector<std::string_view>& apply(std::string_view text,
                                             bool at_start,
                                             Scratch& scratch) const;

 private:
  struct Split {
    Regex pattern;
    SplitBehavior behavior;
    bool invert;
  };
  struct PrefixSpace {};
  struct Metaspace {
    std::string mark;
    Prepend prepend;
  };
  /// Replaces the pieces; true when the first one is where the first one before it was.
  static bool split(const Split& step, Scratch& scratch);
  static void metaspace(const Metaspace& step, bool at_start, Scratch& scratch);
  static void cover(std::size_t size, bool invert, Scratch& scratch);

  std::vector<std::variant<Split, PrefixSpace, Metaspace>> steps_;
};

}  // namespace moiety
