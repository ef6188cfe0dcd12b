#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moiety {

/// One entry of added_tokens: a text that becomes one token before anything else looks at it.
struct AddedToken {
  std::int32_t id = 0;
  std::string content;
  bool single_word = false;  ///< only between characters that are not of words
  bool lstrip = false;       ///< takes the white space before it
  bool rstrip = false;       ///< takes the white space after it
  bool normalized = false;   ///< looked for in normalized text, in its own normalized form
  bool special = false;      ///< left out of decoded text unless asked for
};

/// Finds added tokens in text: the leftmost, of those the longest. Immutable, thread-safe.
class AddedTokenMatcher {
 public:
  struct Piece {
    std::string_view text;
    std::int32_t id = -1;  ///< -1: text between added tokens
  };

  /// Looks for `pattern` (in most cases the token's content) from now on. False when another token
  /// already has this pattern. An empty pattern never matches.
  bool add(const AddedToken& token, std::string_view pattern);

  /// Cuts `text` into added tokens and the text between them; no piece of text is empty.
  std::vector<Piece> split(std::string_view text) const;

 private:
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};
  struct Node {
    std::map<char, std::uint32_t> next;
    std::uint32_t token = kNone;
  };
  struct Match {
    std::size_t begin = 0;
    std::size_t end = 0;
    std::uint32_t token = kNone;
  };
  Match find(std::string_view text, std::size_t from) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> trie_ = {Node{}};
  std::array<bool, 256> starts_{};  // bytes that some pattern starts with
};

}  // namespace moiety
