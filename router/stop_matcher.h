#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace moiety {

/// Finds the first stop string in a text that arrives in pieces, and gives out what certainly comes
/// before it. The outcome does not depend on where the pieces end: the stop string that is complete
/// first ends the text (of several that end at the same place, the longest).
class StopMatcher {
 public:
  /// `stops`: none is empty. `include`: the stop string is part of the text.
  StopMatcher(std::vector<std::string> stops, bool include);

  /// The text that became certain; what could be the beginning of a stop string is held back.
  /// After a match nothing more comes.
  std::string push(std::string_view piece);
  /// Gives out `piece` and what was held back without looking for stop strings in it.
  std::string pass(std::string_view piece);
  /// Gives out what was held back: the text has ended.
  std::string finish();

  /// The stop string that ended the text.
  const std::optional<std::string>& matched() const { return matched_; }

 private:
  struct Match {
    std::size_t begin = 0, end = 0;
  };
  std::optional<Match> first_match() const;
  std::size_t held_back() const;

  std::vector<std::string> stops_;
  bool include_;
  std::string pending_;
  std::optional<std::string> matched_;
};

}  // namespace moiety
