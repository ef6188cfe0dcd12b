#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

struct pcre2_real_code_8;

namespace moiety {

/// The most bytes that rewriting a text of `text_bytes` may give. No tokenizer that is meant to be
/// used comes near (NFKC makes 11 times as much of some characters): a file that does would take
/// all memory.
constexpr std::size_t most_rewritten_bytes(std::size_t text_bytes) {
  return (std::size_t{1} << 20) + 32 * text_bytes;
}
/// kResourceExhausted: it would be more.
Error rewritten_too_long(std::size_t most_bytes);

/// What all the matching for one text may take: 1 s of this thread's processor time and 4 us for
/// each byte, some ten times what sound patterns take of any text. Time, as PCRE2 counts the steps
/// of one attempt at a match, and neither attempts nor what a loop such as .* reads. For one
/// thread.
class MatchBudget {
 public:
  explicit MatchBudget(std::size_t text_bytes)
      : most_(std::chrono::seconds(1) + std::chrono::microseconds(4) * text_bytes) {}

  /// After every attempts at a match; false: it is spent. Looks at the clock once in
  /// kAttemptsPerLook.
  bool spend(std::size_t attempts);

  static constexpr std::size_t kAttemptsPerLook = 256;

 private:
  std::chrono::nanoseconds most_;
  std::size_t attempts_ = 0;                       // since the last look
  std::optional<std::chrono::nanoseconds> began_;  // the first look
};

/// A compiled pattern. Immutable, movable; matching is thread-safe (each thread has its own
/// scratch).
class Regex {
 public:
  /// [begin, end) in bytes.
  struct Span {
    std::size_t begin = 0;
    std::size_t end = 0;
  };

  /// A regular expression as tokenizer.json writes them (see translate_pattern).
  static Result<Regex> compile(std::string_view pattern);
  /// A pattern that matches `text` itself.
  static Result<Regex> literal(std::string_view text);

  /// Replaces `matches` by the matches in `text` (valid UTF-8), leftmost first, in order. An empty
  /// match right after another match does not count. kResourceExhausted: a match took more than 10
  /// million steps of backtracking and 64 for each byte of the text, or the budget is spent, so
  /// that a pattern of exponential or quadratic cost holds nobody up.
  Result<void> find_all(std::string_view text,
                        std::vector<Span>& matches,
                        MatchBudget& budget) const;
  /// `text` with `content` in place of each match; errors are find_all's, and kResourceExhausted
  /// when that is longer than `most_bytes`.
  Result<std::string> replace_all(std::string_view text,
                                  std::string_view content,
                                  std::size_t most_bytes,
                                  MatchBudget& budget) const;

 private:
  struct Free {
    void operator()(pcre2_real_code_8* code) const;
  };
  using Code = std::unique_ptr<pcre2_real_code_8, Free>;
  /// `written` is what the user wrote, for errors; `expression` what PCRE2 compiles.
  static Result<Regex> make(std::string_view expression,
                            unsigned options,
                            std::string_view written);
  explicit Regex(Code code);
  /// Calls on_match(Span) for find_all's matches until it returns false.
  template <class OnMatch>
  Result<void> each_match(std::string_view text, MatchBudget& budget, OnMatch on_match) const;
  Error failed(std::string_view text, std::string_view why) const;
  Code code_;
  std::string shown_;         // the pattern as written, cut short; for errors
  std::string literal_;       // a pattern that needs no regular expression, if not empty
  bool is_compiled_ = false;  // to machine code: unless the system forbids it, or it is wrong
  bool asks_start_ = false;   // \G: where a search starts matters
};

}  // namespace moiety
