#include "model/tokenizer_vocabulary.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "common/check.h"

namespace moiety {
namespace {

std::uint64_t load(const char* from, std::size_t bytes) {
  std::uint64_t word = 0;
  std::memcpy(&word, from, bytes);
  return word;
}

std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  const auto product =
      static_cast<unsigned __int128>(a ^ 0x9E3779B97F4A7C15u) * (b ^ 0xD6E8FEB86659FD93u);
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

}  // namespace

std::uint64_t hash_text(std::string_view text) {
  const char* from = text.data();
  std::size_t left = text.size();
  std::uint64_t hash = left;
  for (; left > 16; left -= 16, from += 16) hash = mix(load(from, 8) ^ hash, load(from + 8, 8));
  // The last 16 bytes, which may overlap, so that no byte is read that is not there.
  if (left >= 8) return mix(load(from, 8) ^ hash, load(from + left - 8, 8));
  if (left >= 4) return mix(load(from, 4) ^ hash, load(from + left - 4, 4));
  if (left == 0) return mix(hash, 0);
  const std::uint64_t bytes =
      load(from, 1) | load(from + left / 2, 1) << 8 | load(from + left - 1, 1) << 16;
  return mix(bytes ^ hash, left);
}

void Vocabulary::reserve(std::size_t num_tokens, std::size_t num_bytes) {
  entries_.reserve(num_tokens);
  texts_.reserve(num_bytes);
  grow(std::bit_ceil(2 * num_tokens + 2));
}

void Vocabulary::grow(std::size_t num_slots) {
  if (num_slots <= slots_.size()) return;
  slots_.assign(num_slots, 0);
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    slots_[slot_of(text(entries_[i]))] = static_cast<std::uint32_t>(i + 1);
  }
}

std::size_t Vocabulary::slot_of(std::string_view wanted) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t slot = hash_text(wanted) & mask;
  while (slots_[slot] != 0 && text(entries_[slots_[slot] - 1]) != wanted) slot = (slot + 1) & mask;
  return slot;
}

bool Vocabulary::add(std::string_view text, std::int32_t id) {
  constexpr std::size_t kLimit = std::numeric_limits<std::uint32_t>::max();
  MOIETY_CHECK(texts_.size() + text.size() < kLimit, "the vocabulary is larger than 4 GiB");
  grow(std::bit_ceil(2 * entries_.size() + 2));
  const std::size_t slot = slot_of(text);
  if (slots_[slot] != 0) return false;
  entries_.push_back(
      {static_cast<std::uint32_t>(texts_.size()), static_cast<std::uint32_t>(text.size()), id});
  texts_ += text;
  slots_[slot] = static_cast<std::uint32_t>(entries_.size());
  return true;
}

std::int32_t Vocabulary::find(std::string_view text) const {
  const std::uint32_t entry = slots_[slot_of(text)];
  return entry == 0 ? -1 : entries_[entry - 1].id;
}

Vocabulary::Token Vocabulary::operator[](std::size_t index) const {
  return {text(entries_[index]), entries_[index].id};
}

}  // namespace moiety
