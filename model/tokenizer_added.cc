#include "model/tokenizer_added.h"

#include <algorithm>

#include "common/utf8.h"
#include "model/tokenizer_unicode.h"

namespace moiety {
namespace {

bool touches_word(std::string_view text, std::size_t begin, std::size_t end) {
  const std::string_view before = text.substr(0, begin);
  const std::string_view after = text.substr(end);
  return (!before.empty() && is_word_character(last_code_point(before).value)) ||
         (!after.empty() && is_word_character(first_code_point(after).value));
}

std::size_t skip_space_left(std::string_view text, std::size_t position) {
  while (position > 0) {
    const CodePoint character = last_code_point(text.substr(0, position));
    if (!is_white_space(character.value)) break;
    position -= character.bytes;
  }
  return position;
}

std::size_t skip_space_right(std::string_view text, std::size_t position) {
  while (position < text.size()) {
    const CodePoint character = first_code_point(text.substr(position));
    if (!is_white_space(character.value)) break;
    position += character.bytes;
  }
  return position;
}

}  // namespace

bool AddedTokenMatcher::add(const AddedToken& token, std::string_view pattern) {
  if (pattern.empty()) return true;
  std::uint32_t node = 0;
  for (char byte : pattern) {
    const auto fresh = static_cast<std::uint32_t>(trie_.size());
    const auto [edge, inserted] = trie_[node].next.try_emplace(byte, fresh);
    node = edge->second;
    if (inserted) trie_.emplace_back();
  }
  if (trie_[node].token != kNone) return false;
  trie_[node].token = static_cast<std::uint32_t>(tokens_.size());
  tokens_.push_back(token);
  starts_[static_cast<std::uint8_t>(pattern[0])] = true;
  return true;
}

AddedTokenMatcher::Match AddedTokenMatcher::find(std::string_view text, std::size_t from) const {
  for (std::size_t begin = from; begin < text.size(); ++begin) {
    if (!starts_[static_cast<std::uint8_t>(text[begin])]) continue;
    Match longest;
    std::uint32_t node = 0;
    for (std::size_t end = begin; end < text.size(); ++end) {
      const auto edge = trie_[node].next.find(text[end]);
      if (edge == trie_[node].next.end()) break;
      node = edge->second;
      if (trie_[node].token != kNone) longest = {begin, end + 1, trie_[node].token};
    }
    if (longest.token != kNone) return longest;
  }
  return {};
}

std::vector<AddedTokenMatcher::Piece> AddedTokenMatcher::split(std::string_view text) const {
  std::vector<Piece> pieces;
  std::size_t done = 0;
  for (std::size_t from = 0; !tokens_.empty();) {
    const Match match = find(text, from);
    if (match.token == kNone) break;
    from = match.end;  // the search goes on here even when the match takes white space after it
    const AddedToken& token = tokens_[match.token];
    if (token.single_word && touches_word(text, match.begin, match.end)) continue;
    std::size_t begin = match.begin;
    if (token.lstrip) begin = std::max(skip_space_left(text, begin), done);
    if (done < begin) pieces.push_back({text.substr(done, begin - done), -1});
    const std::size_t end = token.rstrip ? skip_space_right(text, match.end) : match.end;
    // White space that an earlier match took makes no token of its own.
    if (begin < end) pieces.push_back({text.substr(begin, end - begin), token.id});
    done = end;
  }
  if (done < text.size()) pieces.push_back({text.substr(done), -1});
  return pieces;
}

}  // namespace moiety
