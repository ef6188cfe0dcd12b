#include "model/tokenizer_split.h"

#include <algorithm>
#include <utility>

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

}  // namespace

void PreTokenizer::add_split(Regex pattern, SplitBehavior behavior, bool invert) {
  steps_.emplace_back(Split{std::move(pattern), behavior, invert});
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

bool PreTokenizer::split(const Split& step, Scratch& scratch) {
  bool from_start = true;
  scratch.cut.clear();
  for (const std::string_view& piece : scratch.pieces) {
    const bool is_first = &piece == &scratch.pieces.front();
    step.pattern.find_all(piece, scratch.matches);
    if (scratch.matches.empty() && !step.invert) {
      scratch.cut.push_back(piece);
      continue;
    }
    cover(piece.size(), step.invert, scratch);
    apply_behavior(step.behavior, scratch.parts);
    if (is_first) from_start = !scratch.parts.empty() && scratch.parts.front().begin == 0;
    for (const auto& part : scratch.parts) {
      if (part.begin == part.end) continue;
      scratch.cut.push_back(piece.substr(part.begin, part.end - part.begin));
    }
  }
  scratch.pieces.swap(scratch.cut);
  return from_start;
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

const std::vector<std::string_view>& PreTokenizer::apply(std::string_view text,
                                                         bool at_start,
                                                         Scratch& scratch) const {
  scratch.texts.clear();
  scratch.pieces.clear();
  if (!text.empty()) scratch.pieces.push_back(text);
  for (const auto& step : steps_) {
    if (const auto* pattern = std::get_if<Split>(&step)) {
      at_start = split(*pattern, scratch) && at_start;
    } else if (const auto* mark = std::get_if<Metaspace>(&step)) {
      metaspace(*mark, at_start, scratch);
    } else {
      for (std::string_view& piece : scratch.pieces) {
        if (!piece.starts_with(' ')) piece = scratch.texts.emplace_back(" ").append(piece);
      }
    }
  }
  return scratch.pieces;
}

}  // namespace moiety
