#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moiety {

/// A hash of short texts; fast, and no defence against texts that were made to collide.
std::uint64_t hash_text(std::string_view text);

/// The texts of a model's tokens and their ids, both ways. Filled once, then immutable and
/// thread-safe.
class Vocabulary {
 public:
  struct Token {
    std::string_view text;  ///< until the vocabulary changes or is moved
    std::int32_t id = 0;
  };

  /// Makes room for `num_tokens` texts of `num_bytes` in all.
  void reserve(std::size_t num_tokens, std::size_t num_bytes);
  /// False when the text is there already.
  bool add(std::string_view text, std::int32_t id);

  /// The id of a text, or -1.
  std::int32_t find(std::string_view text) const;
  std::size_t size() const { return entries_.size(); }
  /// In the order in which they were added.
  Token operator[](std::size_t index) const;

 private:
  struct Entry {
    std::uint32_t begin;
    std::uint32_t size;
    std::int32_t id;
  };
  std::string_view text(const Entry& entry) const {
    return std::string_view(texts_).substr(entry.begin, entry.size);
  }
  void grow(std::size_t num_slots);
  /// The slot of `text`, or the free one where it belongs.
  std::size_t slot_of(std::string_view text) const;

  std::string texts_;
  std::vector<Entry> entries_;
  std::vector<std::uint32_t> slots_ = {0, 0};  // entry + 1, or 0; a power of two, at most half full
};

}  // namespace moiety
