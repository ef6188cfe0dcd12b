#include "model/tokenizer_regex.h"

#include <cstdint>
#include <limits>
#include <string>

#include "common/check.h"
#include "common/log.h"
#include "model/tokenizer_pattern.h"
#include "model/utf8.h"

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
    pcre2_set_match_limit(context_.get(), kNone);
    pcre2_set_depth_limit(context_.get(), kNone);
    pcre2_set_heap_limit(context_.get(), kNone);
    pcre2_jit_stack_assign(context_.get(), nullptr, jit_stack_.get());
  }

  pcre2_match_data* data() { return data_.get(); }

  int match(const pcre2_code* code, std::string_view text, std::size_t start) {
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    // The text is known to be valid; checking all of it before each match would be quadratic.
    const std::uint32_t options = PCRE2_NO_UTF_CHECK;
    int found =
        pcre2_match(code, subject, text.size(), start, options, data_.get(), context_.get());
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {  // the interpreter backtracks on the heap
      found = pcre2_match(code, subject, text.size(), start, options | PCRE2_NO_JIT, data_.get(),
                          context_.get());
    }
    return found;
  }

 private:
  std::unique_ptr<pcre2_match_data, Freer<pcre2_match_data_free>> data_;
  std::unique_ptr<pcre2_match_context, Freer<pcre2_match_context_free>> context_;
  std::unique_ptr<pcre2_jit_stack, Freer<pcre2_jit_stack_free>> jit_stack_;
};

std::string message_of(int error) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(error, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

void Regex::Free::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

Result<Regex> Regex::make(std::string_view pattern, unsigned options) {
  std::unique_ptr<pcre2_compile_context, Freer<pcre2_compile_context_free>> context(
      pcre2_compile_context_create(nullptr));
  MOIETY_CHECK(context, "out of memory");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  std::size_t offset = 0;
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                          PCRE2_UTF | options, &error, &offset, context.get()));
  if (!code) {
    return fail(ErrorCode::kInvalidArgument, "not a regular expression: " + message_of(error) +
                                                 " at byte " + std::to_string(offset) + " of " +
                                                 std::string(pattern));
  }
  // Where the system forbids code generation, matching falls back to the interpreter by itself.
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return Regex(std::move(code));
}

Result<Regex> Regex::compile(std::string_view pattern) {
  MOIETY_ASSIGN(const std::string translated, translate_pattern(pattern));
  return make(translated, PCRE2_UCP);
}

Result<Regex> Regex::literal(std::string_view text) { return make(text, PCRE2_LITERAL); }

void Regex::find_all(std::string_view text, std::vector<Span>& matches) const {
  thread_local MatchScratch scratch;
  matches.clear();
  std::size_t start = 0;
  while (start <= text.size()) {
    const int found = scratch.match(code_.get(), text, start);
    if (found == PCRE2_ERROR_NOMATCH) return;
    if (found < 0) {
      log_error("tokenizer: a pattern failed on a text of {} bytes, the rest stays one piece: {}",
                text.size(), message_of(found));
      return;
    }
    const std::size_t* bounds = pcre2_get_ovector_pointer(scratch.data());
    const Span match{bounds[0], bounds[1]};
    if (match.begin == match.end && !matches.empty() && matches.back().end == match.end) {
      start += start < text.size() ? first_code_point(text.substr(start)).bytes : 1;
      continue;
    }
    matches.push_back(match);
    start = match.end;
  }
}

}  // namespace moiety
