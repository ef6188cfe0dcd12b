#include "router/stop_matcher.h"

#include <algorithm>

namespace moiety {

StopMatcher::StopMatcher(std::vector<std::string> stops, bool include)
    : stops_(std::move(stops)), include_(include) {}

std::string StopMatcher::push(std::string_view piece) {
  if (matched_) return {};
  pending_ += piece;
  if (const auto match = first_match()) {
    matched_ = pending_.substr(match->begin, match->end - match->begin);
    std::string text = pending_.substr(0, include_ ? match->end : match->begin);
    pending_.clear();
    return text;
  }
  const std::size_t certain = pending_.size() - held_back();
  std::string text = pending_.substr(0, certain);
  pending_.erase(0, certain);
  return text;
}

std::string StopMatcher::pass(std::string_view piece) {
  std::string text = finish();
  if (!matched_) text += piece;
  return text;
}

std::string StopMatcher::finish() {
  std::string text;
  text.swap(pending_);
  return text;
}

std::optional<StopMatcher::Match> StopMatcher::first_match() const {
  std::optional<Match> first;
  for (const std::string& stop : stops_) {
    const std::size_t begin = pending_.find(stop);
    if (begin == std::string::npos) continue;
    const Match match{begin, begin + stop.size()};
    if (!first || match.end < first->end ||
        (match.end == first->end && match.begin < first->begin)) {
      first = match;
    }
  }
  return first;
}

/// Length of the longest end of pending_ that begins a stop string.
std::size_t StopMatcher::held_back() const {
  std::size_t longest = 0;
  for (const std::string& stop : stops_) {
    const std::size_t most = std::min(stop.size() - 1, pending_.size());
    for (std::size_t length = most; length > longest; --length) {
      if (pending_.compare(pending_.size() - length, length, stop, 0, length) == 0) {
        longest = length;
        break;
      }
    }
  }
  return longest;
}

}  // namespace moiety
