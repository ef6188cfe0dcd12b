#include "model/tokenizer_regex.h"

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "common/check.h"
#include "common/utf8.h"
#include "model/tokenizer_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace moiety {
namespace {

template <auto kFree>
struct Freer {
  template <class T>
  void operator()(T* pointer) const {
    kFree(pointer);
  }
};

// What one thread needs to match; made on its first match.
class MatchScratch {
 public:
  MatchScratch()
      : data_(pcre2_match_data_create(1, nullptr)),
        context_(pcre2_match_context_create(nullptr)),
        // Reserved, not committed: the kernel hands out pages as the stack grows.
        jit_stack_(pcre2_jit_stack_create(64 << 10, 64 << 20, nullptr)) {
    MOIETY_CHECK(data_ && context_ && jit_stack_, "out of memory");
    constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();
    pcre2_set_depth_limit(context_.get(), kNone);
    pcre2_set_heap_limit(context_.get(), kNone);
    pcre2_jit_stack_assign(context_.get(), nullptr, jit_stack_.get());
  }

  void begin(std::size_t text_bytes) {
    const std::uint64_t limit = 10'000'000 + 64 * std::uint64_t{text_bytes};
    pcre2_set_match_limit(context_.get(), static_cast<std::uint32_t>(std::min<std::uint64_t>(
                                              limit, std::numeric_limits<std::uint32_t>::max())));
  }

  pcre2_match_data* data() { return data_.get(); }

  /// Looks for a match that begins from `start` to `last_start`.
  int match(const pcre2_code* code,
            bool is_compiled,
            std::string_view text,
            std::size_t start,
            std::size_t last_start) {
    pcre2_set_offset_limit(context_.get(), last_start);
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    if (is_compiled) {
      const int found =
          pcre2_jit_match(code, subject, text.size(), start, 0, data_.get(), context_.get());
      // Without stack the interpreter goes on: it backtracks on the heap.
      if (found != PCRE2_ERROR_JIT_STACKLIMIT) return found;
    }
    // The text is known to be valid; checking all of it before each match would be quadratic.
    return pcre2_match(code, subject, text.size(), start, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                       data_.get(), context_.get());
  }

 private:
  std::unique_ptr<pcre2_match_data, Freer<pcre2_match_data_free>> data_;
  std::unique_ptr<pcre2_match_context, Freer<pcre2_match_context_free>> context_;
  std::unique_ptr<pcre2_jit_stack, Freer<pcre2_jit_stack_free>> jit_stack_;
};

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xC0u) == 0x80; }

std::string message_of(int error) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(error, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

// A pattern as errors show it: its beginning, cut between two characters.
std::string shortened(std::string_view pattern) {
  constexpr std::size_t kMostBytes = 200;
  if (pattern.size() <= kMostBytes) return std::string(pattern);
  std::string_view beginning = pattern.substr(0, kMostBytes);
  beginning.remove_suffix(unfinished_utf8_suffix(beginning));
  return std::string(beginning) + "...";
}

}  // namespace

bool MatchBudget::spend(std::size_t attempts) {
  attempts_ += attempts;
  if (attempts_ < kAttemptsPerLook) return true;
  attempts_ = 0;
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  const auto time = std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
  if (!began_) began_ = time;
  return time - *began_ <= most_;
}

Error rewritten_too_long(std::size_t most_bytes) {
  return fail(ErrorCode::kResourceExhausted, "the tokenizer rewrites this text to more than " +
                                                 std::to_string(most_bytes) +
                                                 " bytes, as no sound tokenizer.json does");
}

void Regex::Free::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

Result<Regex> Regex::make(std::string_view expression, unsigned options, std::string_view written) {
  std::unique_ptr<pcre2_compile_context, Freer<pcre2_compile_context_free>> context(
      pcre2_compile_context_create(nullptr));
  MOIETY_CHECK(context, "out of memory");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  std::size_t offset = 0;
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
                          PCRE2_UTF | PCRE2_USE_OFFSET_LIMIT | options, &error, &offset,
                          context.get()));
  if (!code) {
    // `offset` counts in the expression, which the user did not write.
    return fail(ErrorCode::kInvalidArgument,
                "not a regular expression (" + message_of(error) + "): " + shortened(written));
  }
  Regex regex(std::move(code));
  regex.shown_ = shortened(written);
  return regex;
}

Regex::Regex(Code code) : code_(std::move(code)) {}

Result<Regex> Regex::compile(std::string_view pattern) {
  MOIETY_ASSIGN(const std::string translated, translate_pattern(pattern));
  MOIETY_ASSIGN(Regex regex, make(translated, PCRE2_UCP, pattern));
  regex.asks_start_ = translated.find("\\G") != std::string::npos;
  // PCRE2 10.42's machine code matches (a)*+b|\1 in "a" and (?>a*c|a){2}b in "aacb"; Oniguruma and
  // PCRE2's interpreter do not.
  if (translated.find("\\g{") == std::string::npos && pattern.find("(?>") == std::string::npos) {
    regex.is_compiled_ = pcre2_jit_compile(regex.code_.get(), PCRE2_JIT_COMPLETE) == 0;
  }
  return regex;
}

Result<Regex> Regex::literal(std::string_view text) {
  MOIETY_ASSIGN(Regex regex, make(text, PCRE2_LITERAL, text));
  regex.literal_ = text;
  return regex;
}

Error Regex::failed(std::string_view text, std::string_view why) const {
  return fail(
      ErrorCode::kResourceExhausted,
      fmt::format("the tokenizer's pattern {} failed on a text of {} bytes ({}): give it in "
                  "shorter pieces",
                  shown_, text.size(), why));
}

template <class OnMatch>
Result<void> Regex::each_match(std::string_view text, MatchBudget& budget, OnMatch on_match) const {
  std::size_t start = 0;
  if (!literal_.empty()) {
    while ((start = text.find(literal_, start)) != std::string_view::npos) {
      if (!on_match(Span{start, start + literal_.size()})) return {};
      start += literal_.size();
    }
    return {};
  }
  thread_local MatchScratch scratch;
  scratch.begin(text.size());
  std::optional<std::size_t> last_end;
  while (start <= text.size()) {
    // In one call PCRE2 may attempt a match at every byte: it gets so many at a time.
    constexpr std::size_t kMost = MatchBudget::kAttemptsPerLook;
    const std::size_t last_start = asks_start_ ? text.size() : std::min(start + kMost, text.size());
    const int found = scratch.match(code_.get(), is_compiled_, text, start, last_start);
    if (!budget.spend(found == PCRE2_ERROR_NOMATCH ? last_start - start : 1)) {
      return failed(text, "too slow");
    }
    if (found == PCRE2_ERROR_NOMATCH) {
      if (last_start == text.size()) return {};
      start = last_start + 1;
      while (start < text.size() && is_continuation(text[start])) ++start;
      continue;
    }
    if (found < 0) return failed(text, message_of(found));
    const std::size_t* bounds = pcre2_get_ovector_pointer(scratch.data());
    const Span match{bounds[0], bounds[1]};
    if (match.begin == match.end && last_end == match.end) {
      start += start < text.size() ? first_code_point(text.substr(start)).bytes : 1;
      continue;
    }
    if (!on_match(match)) return {};
    last_end = start = match.end;
  }
  return {};
}

Result<void> Regex::find_all(std::string_view text,
                             std::vector<Span>& matches,
                             MatchBudget& budget) const {
  matches.clear();
  return each_match(text, budget, [&](Span match) {
    matches.push_back(match);
    return true;
  });
}

Result<std::string> Regex::replace_all(std::string_view text,
                                       std::string_view content,
                                       std::size_t most_bytes,
                                       MatchBudget& budget) const {
  std::string out;
  out.reserve(text.size());
  std::size_t done = 0;
  bool fits = true;
  MOIETY_TRY(each_match(text, budget, [&](Span match) {
    const std::string_view kept = text.substr(done, match.begin - done);
    fits = out.size() + kept.size() + content.size() <= most_bytes;
    if (!fits) return false;
    out += kept;
    out += content;
    done = match.end;
    return true;
  }));
  if (!fits || out.size() + text.size() - done > most_bytes) return rewritten_too_long(most_bytes);
  out += text.substr(done);
  return out;
}

}  // namespace moiety
