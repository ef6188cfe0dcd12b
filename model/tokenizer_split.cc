#include "model/tokenizer_split.h"

#include <algorithm>
#include <utility>

namespace moiety {
namespace {

// A part of a piece: a match, or what lies between two.
struct Part {
  std::size_t begin;
  std::size_t end;
  bool is_match;
};

// The whole of a non-empty text as parts in order. Empty matches are parts of their own.
void cover(std::size_t size,
           const std::vector<Regex::Span>& matches,
           bool invert,
           std::vector<Part>& parts) {
  parts.clear();
  std::size_t done = 0;
  for (const Regex::Span& match : matches) {
    if (done != match.begin) parts.push_back({done, match.begin, invert});
    parts.push_back({match.begin, match.end, !invert});
    done = match.end;
  }
  if (done != size) parts.push_back({done, size, invert});
}

// Joins neighbours, in place and in the order given, as the behaviours that merge want it.
template <class Joins>
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

std::vector<std::string_view> PreTokenizer::apply(std::string_view text,
                                                  std::deque<std::string>& storage) const {
  std::vector<std::string_view> pieces;
  if (!text.empty()) pieces.push_back(text);
  std::vector<std::string_view> cut;
  std::vector<Regex::Span> matches;
  std::vector<Part> parts;
  for (const auto& step : steps_) {
    const auto* split = std::get_if<Split>(&step);
    if (split == nullptr) {
      for (std::string_view& piece : pieces) {
        if (!piece.starts_with(' ')) piece = storage.emplace_back(" ").append(piece);
      }
      continue;
    }
    cut.clear();
    for (std::string_view piece : pieces) {
      split->pattern.find_all(piece, matches);
      cover(piece.size(), matches, split->invert, parts);
      apply_behavior(split->behavior, parts);
      for (const Part& part : parts) {
        if (part.begin != part.end) cut.push_back(piece.substr(part.begin, part.end - part.begin));
      }
    }
    pieces.swap(cut);
  }
  return pieces;
}

}  // namespace moiety
