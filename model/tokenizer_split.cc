#include "model/tokenizer_split.h"

#include <algorithm>
#include <utility>

#include "common/utf8.h"
#include "model/byte_level.h"
#include "model/tokenizer_unicode.h"

namespace moiety {
namespace {

// Joins neighbours, in place and in the order given, as the behaviours that merge want it.
template <class Part, class Joins>
void merge(std::vector<Part>& parts, Joins joins) {
  std::size_t kept = 0;
  bool previous_match = false;
  for (const Part part : parts) {
    if (kept > 0 && joins(part.is_match, previous_match)) {
      parts[kept - 1].begin = std::min(parts[kept - 1].begin, part.begin);
      parts[kept - 1].end = std::max(parts[kept - 1].end, part.end);
    } else {
      parts[kept++] = part;
    }
    previous_match = part.is_match;
  }
  parts.resize(kept);
}

template <class Part>
void apply_behavior(SplitBehavior behavior, std::vector<Part>& parts) {
  const auto delimiter_joins = [](bool match, bool previous) { return match && !previous; };
  switch (behavior) {
    case SplitBehavior::kIsolated:
      break;
    case SplitBehavior::kRemoved:
      std::erase_if(parts, [](const Part& part) { return part.is_match; });
      break;
    case SplitBehavior::kMergedWithPrevious:
      merge(parts, delimiter_joins);
      break;
    case SplitBehavior::kMergedWithNext:
      std::reverse(parts.begin(), parts.end());
      merge(parts, delimiter_joins);
      std::reverse(parts.begin(), parts.end());
      break;
    case SplitBehavior::kContiguous:
      merge(parts, [](bool match, bool previous) { return match == previous; });
      break;
  }
}

Result<void> find_characters(bool (*wanted)(char32_t),
                             std::string_view text,
                             std::vector<Regex::Span>& matches) {
  matches.clear();
  for (std::size_t begin = 0; begin < text.size();) {
    const CodePoint character = first_code_point(text.substr(begin));
    if (wanted(character.value)) matches.push_back({begin, begin + character.bytes});
    begin += character.bytes;
  }
  return {};
}

// Cuts `text` before each character for which starts(character, keep) is true; `keep` then says
// whether the piece that begins there goes to `out`.
template <class Starts>
void cut_where(std::string_view text, std::vector<std::string_view>& out, Starts starts) {
  std::size_t begin = 0;
  bool keep = false;
  const auto end_piece = [&](std::size_t end) {
    if (keep && end > begin) out.push_back(text.substr(begin, end - begin));
    begin = end;
  };
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint character = first_code_point(text.substr(at));
    bool next_keep = keep;
    if (starts(character.value, next_keep)) {
      end_piece(at);
      keep = next_keep;
    }
    at += character.bytes;
  }
  end_piece(text.size());
}

void cut_words(std::string_view text, std::vector<std::string_view>& out) {
  enum class Kind { kNone, kSpace, kWord, kOther };
  Kind last = Kind::kNone;
  cut_where(text, out, [&](char32_t value, bool& keep) {
    const Kind kind = is_word_character(value) ? Kind::kWord
                      : is_white_space(value)  ? Kind::kSpace
                                               : Kind::kOther;
    const bool changes = kind != last;
    last = kind;
    keep = kind != Kind::kSpace;
    return changes;
  });
}

void cut_scripts(std::string_view text, std::vector<std::string_view>& out) {
  constexpr int kAny = -1;
  int last = kAny;
  cut_where(text, out, [&](char32_t value, bool& keep) {
    const int script = script_of(value);
    if (script == kAny || script == last) return false;
    last = script;
    keep = true;
    return true;
  });
}

void cut_fixed(std::string_view text,
               std::size_t num_characters,
               std::vector<std::string_view>& out) {
  std::size_t count = 0;
  cut_where(text, out, [&](char32_t, bool& keep) {
    keep = true;
    return count++ % num_characters == 0;
  });
}

}  // namespace

void PreTokenizer::add_split(Regex pattern, SplitBehavior behavior, bool invert) {
  steps_.emplace_back(Split{std::move(pattern), behavior, invert});
}

void PreTokenizer::add_split(bool (*is_delimiter)(char32_t), SplitBehavior behavior) {
  steps_.emplace_back(Delimiters{is_delimiter, behavior});
}

void PreTokenizer::add_words() { steps_.emplace_back(Words{}); }

void PreTokenizer::add_scripts() { steps_.emplace_back(Scripts{}); }

void PreTokenizer::add_fixed_length(std::size_t num_characters) {
  steps_.emplace_back(FixedLength{num_characters});
}

void PreTokenizer::add_byte_level() { steps_.emplace_back(ByteLevel{}); }

bool PreTokenizer::remove_last_byte_level() {
  if (steps_.empty() || !std::holds_alternative<ByteLevel>(steps_.back())) return false;
  steps_.pop_back();
  return true;
}

void PreTokenizer::add_prefix_space() { steps_.emplace_back(PrefixSpace{}); }

void PreTokenizer::add_metaspace(std::string mark, Prepend prepend) {
  steps_.emplace_back(Metaspace{std::move(mark), prepend});
}

// The whole of a non-empty text as parts in order. Empty matches are parts of their own.
void PreTokenizer::cover(std::size_t size, bool invert, Scratch& scratch) {
  scratch.parts.clear();
  std::size_t done = 0;
  for (const Regex::Span& match : scratch.matches) {
    if (done != match.begin) scratch.parts.push_back({done, match.begin, invert});
    scratch.parts.push_back({match.begin, match.end, !invert});
    done = match.end;
  }
  if (done != size) scratch.parts.push_back({done, size, invert});
}

template <class Find>
Result<void> PreTokenizer::split(SplitBehavior behavior, bool invert, Scratch& scratch, Find find) {
  for (const std::string_view& piece : scratch.pieces) {
    MOIETY_TRY(find(piece, scratch.matches));
    if (scratch.matches.empty() && !invert) {
      scratch.cut.push_back(piece);
      continue;
    }
    cover(piece.size(), invert, scratch);
    apply_behavior(behavior, scratch.parts);
    for (const auto& part : scratch.parts) {
      if (part.begin == part.end) continue;
      scratch.cut.push_back(piece.substr(part.begin, part.end - part.begin));
    }
  }
  return {};
}

void PreTokenizer::metaspace(const Metaspace& step, bool at_start, Scratch& scratch) {
  bool is_first = at_start;
  for (std::string_view& piece : scratch.pieces) {
    std::string& text = scratch.texts.emplace_back();
    for (const char c : piece) {
      if (c == ' ') {
        text += step.mark;
      } else {
        text += c;
      }
    }
    const bool wanted =
        step.prepend == Prepend::kAlways || (step.prepend == Prepend::kFirst && is_first);
    if (wanted && !text.starts_with(step.mark)) text.insert(0, step.mark);
    is_first = false;
    piece = text;
  }
}

Result<void> PreTokenizer::apply(std::string_view text,
                                 bool at_start,
                                 Scratch& scratch,
                                 MatchBudget& budget) const {
  const std::size_t most_bytes = most_rewritten_bytes(text.size());
  std::size_t spelled_bytes = 0;
  scratch.texts.clear();
  scratch.pieces.clear();
  if (!text.empty()) scratch.pieces.push_back(text);
  for (const auto& step : steps_) {
    if (scratch.pieces.empty()) break;
    if (const auto* mark = std::get_if<Metaspace>(&step)) {
      metaspace(*mark, at_start, scratch);
      continue;
    }
    if (std::holds_alternative<PrefixSpace>(step)) {
      for (std::string_view& piece : scratch.pieces) {
        if (!piece.starts_with(' ')) piece = scratch.texts.emplace_back(" ").append(piece);
      }
      continue;
    }
    if (std::holds_alternative<ByteLevel>(step)) {
      for (std::string_view& piece : scratch.pieces) {
        std::string& spelled = scratch.texts.emplace_back();
        append_byte_level(piece, spelled);
        piece = spelled;
        spelled_bytes += spelled.size();
        if (spelled_bytes > most_bytes) return rewritten_too_long(most_bytes);
      }
      continue;
    }
    scratch.cut.clear();
    if (const auto* cut = std::get_if<Split>(&step)) {
      MOIETY_TRY(split(cut->behavior, cut->invert, scratch, [&](auto piece, auto& matches) {
        return cut->pattern.find_all(piece, matches, budget);
      }));
    } else if (const auto* at = std::get_if<Delimiters>(&step)) {
      MOIETY_TRY(split(at->behavior, false, scratch, [&](auto piece, auto& matches) {
        return find_characters(at->is_delimiter, piece, matches);
      }));
    } else {
      for (const std::string_view& piece : scratch.pieces) {
        if (std::holds_alternative<Words>(step)) {
          cut_words(piece, scratch.cut);
        } else if (std::holds_alternative<Scripts>(step)) {
          cut_scripts(piece, scratch.cut);
        } else {
          cut_fixed(piece, std::get<FixedLength>(step).num_characters, scratch.cut);
        }
      }
    }
    at_start = at_start && !scratch.cut.empty() &&
               scratch.cut.front().data() == scratch.pieces.front().data();
    scratch.pieces.swap(scratch.cut);
  }
  return {};
}

}  // namespace moiety
