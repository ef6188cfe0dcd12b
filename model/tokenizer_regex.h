#pragma once

#include <cstddef>
#include <memory>
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
  /// million steps of backtracking and 64 for each byte of the text, so that a pattern of
  /// exponential cost holds nobody up.
  Result<void> find_all(std::string_view text, std::vector<Span>& matches) const;
  /// `text` with `content` in place of each match; errors are find_all's, and kResourceExhausted
  /// when that is longer than `most_bytes`.
  Result<std::string> replace_all(std::string_view text,
                                  std::string_view content,
                                  std::size_t most_bytes) const;

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
  Result<void> each_match(std::string_view text, OnMatch on_match) const;
  Code code_;
  std::string shown_;         // the pattern as written, cut short; for errors
  std::string literal_;       // a pattern that needs no regular expression, if not empty
  bool is_compiled_ = false;  // to machine code
};

}  // namespace moiety
