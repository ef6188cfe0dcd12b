#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "model/tokenizer_vocabulary.h"

namespace moiety {

/// The ids of words that were encoded lately: of short words, in 1 MiB, each in the one place that
/// its hash chooses. Used by one thread at a time.
class WordCache {
 public:
  static constexpr std::size_t kMaxBytes = 26;
  static constexpr std::size_t kMaxIds = 9;

  /// The ids of `word` (1 to kMaxBytes bytes) if they are known, else nothing. They live until the
  /// next put().
  std::span<const std::int32_t> find(std::string_view word) {
    if (slots_.empty()) slots_.resize(kSlots);
    last_ = &slots_[hash_text(word) % kSlots];
    if (last_->size != word.size()) return {};
    if (std::memcmp(last_->text, word.data(), word.size()) != 0) return {};
    return {last_->ids, last_->count};
  }

  /// Keeps the ids of the word that find() was just called with, unless there are too many.
  void put(std::string_view word, std::span<const std::int32_t> ids) {
    if (ids.empty() || ids.size() > kMaxIds) return;
    last_->size = static_cast<std::uint8_t>(word.size());
    last_->count = static_cast<std::uint8_t>(ids.size());
    std::copy(word.begin(), word.end(), last_->text);
    std::copy(ids.begin(), ids.end(), last_->ids);
  }

 private:
  static constexpr std::size_t kSlots = 1 << 14;
  struct alignas(64) Slot {  // a cache line
    std::uint8_t size = 0;   // of the word; 0: free
    std::uint8_t count = 0;
    char text[kMaxBytes];
    std::int32_t ids[kMaxIds];
  };
  static_assert(sizeof(Slot) == 64);
  std::vector<Slot> slots_;  // made when first needed
  Slot* last_ = nullptr;
};

}  // namespace moiety
