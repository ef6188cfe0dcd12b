#pragma once

#include <cstddef>
#include <memory>
#include <string_view>
#include <vector>

#include "common/result.h"

struct pcre2_real_code_8;

namespace moiety {

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
  /// match right after another match does not count. A match that exceeds PCRE2's largest limits
  /// (2^32 steps of backtracking, all memory) is logged as an error and ends the search.
  void find_all(std::string_view text, std::vector<Span>& matches) const;

 private:
  struct Free {
    void operator()(pcre2_real_code_8* code) const;
  };
  using Code = std::unique_ptr<pcre2_real_code_8, Free>;
  static Result<Regex> make(std::string_view pattern, unsigned options);
  explicit Regex(Code code) : code_(std::move(code)) {}
  Code code_;
};

}  // namespace moiety
