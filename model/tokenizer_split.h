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

/// The pre_tokenizer of a tokenizer.json: cuts text into the pieces that BPE sees. Immutable,
/// thread-safe.
class PreTokenizer {
 public:
  enum class Prepend { kNever, kFirst, kAlways };

  /// Buffers that calls reuse, and the text of pieces that are not parts of the input.
  class Scratch {
   public:
    /// What the last apply() left: pieces of the text, none of them empty. They point into that
    /// text or into this and live until its next use.
    const std::vector<std::string_view>& result() const { return pieces; }

   private:
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
  /// The same at single characters.
  void add_split(bool (*is_delimiter)(char32_t), SplitBehavior behavior);
  /// Keeps runs of word characters and runs of others that are not white space.
  void add_words();
  /// Cuts where the script changes; what is of any script stays with what precedes it, and goes at
  /// the start.
  void add_scripts();
  /// Cuts pieces into pieces of so many characters.
  void add_fixed_length(std::size_t num_characters);
  /// Spells each piece's bytes as characters (byte_level.h).
  void add_byte_level();
  /// Takes the last step away if it is add_byte_level's: BpeModel may take bytes instead.
  bool remove_last_byte_level();
  /// Puts a space before each piece that does not start with one.
  void add_prefix_space();
  /// Replaces each space by `mark` and puts one before pieces that do not start with it: before
  /// none, before the one at the start of the text, or before all.
  void add_metaspace(std::string mark, Prepend prepend);

  /// Cuts `text` (valid UTF-8) into scratch.result(). `at_start`: nothing of the whole text
  /// precedes `text`. kResourceExhausted: a pattern failed (see Regex::find_all), or steps that
  /// spell bytes made more than most_rewritten_bytes of the text.
  Result<void> apply(std::string_view text,
                     bool at_start,
                     Scratch& scratch,
                     MatchBudget& budget) const;

 private:
  struct Split {
    Regex pattern;
    SplitBehavior behavior;
    bool invert;
  };
  struct Delimiters {
    bool (*is_delimiter)(char32_t);
    SplitBehavior behavior;
  };
  struct Words {};
  struct Scripts {};
  struct FixedLength {
    std::size_t num_characters;
  };
  struct ByteLevel {};
  struct PrefixSpace {};
  struct Metaspace {
    std::string mark;
    Prepend prepend;
  };
  using Step = std::
      variant<Split, Delimiters, Words, Scripts, FixedLength, ByteLevel, PrefixSpace, Metaspace>;

  /// Cuts at the spans that find(piece, scratch.matches) finds.
  template <class Find>
  static Result<void> split(SplitBehavior behavior, bool invert, Scratch& scratch, Find find);
  static void metaspace(const Metaspace& step, bool at_start, Scratch& scratch);
  static void cover(std::size_t size, bool invert, Scratch& scratch);

  std::vector<Step> steps_;
};

}  // namespace moiety
