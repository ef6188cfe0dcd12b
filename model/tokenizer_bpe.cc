#include "model/tokenizer_bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "common/check.h"
#include "model/byte_level.h"

namespace moiety {
namespace {

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

// 0xC0, 0xC1 and 0xF5 to 0xFF occur nowhere in UTF-8.
bool occurs_in_utf8(int byte) { return byte < 0xC0 || (byte > 0xC1 && byte < 0xF5); }

}  // namespace

Result<BpeModel> BpeModel::build(TokenMap vocab,
                                 const std::vector<Merge>& merges,
                                 bool ignore_merges) {
  BpeModel model;
  model.vocab_ = std::move(vocab);
  model.ignore_merges_ = ignore_merges;
  for (int byte = 0; byte < 256; ++byte) {
    const auto token = model.vocab_.find(byte_level_character(static_cast<std::uint8_t>(byte)));
    const bool known = token != model.vocab_.end();
    if (!known && occurs_in_utf8(byte)) {
      return fail(
          ErrorCode::kInvalidArgument,
          fmt::format("vocab: no token for byte 0x{:02x}: not a byte-level vocabulary", byte));
    }
    model.byte_ids_[static_cast<std::size_t>(byte)] = known ? token->second : -1;
  }
  model.rules_.assign(std::bit_ceil(2 * merges.size() + 2), Rule{kNoPair, 0, 0});
  model.merged_.reserve(merges.size());
  for (const Merge& merge : merges) {
    const std::size_t rank = model.merged_.size();
    const auto id_of = [&](const std::string& token) -> Result<std::int32_t> {
      const auto found = model.vocab_.find(token);
      if (found != model.vocab_.end()) return found->second;
      return fail(ErrorCode::kInvalidArgument,
                  fmt::format("merges[{}]: token '{}' is not in vocab", rank, token));
    };
    MOIETY_ASSIGN(const std::int32_t left, id_of(merge.left));
    MOIETY_ASSIGN(const std::int32_t right, id_of(merge.right));
    MOIETY_ASSIGN(const std::int32_t merged, id_of(merge.left + merge.right));
    model.rules_[model.place_of(pair_key(left, right))] = {
        pair_key(left, right), static_cast<std::uint32_t>(rank), merged};
    model.merged_.push_back(merged);
  }
  return model;
}

std::size_t BpeModel::place_of(std::uint64_t pair) const {
  const std::size_t mask = rules_.size() - 1;
  // Fibonacci hashing; the upper half of the product is the well mixed one.
  std::size_t place = (pair ^ pair >> 29) * 0x9E3779B97F4A7C15u >> 32;
  while (rules_[place & mask].pair != pair && rules_[place & mask].pair != kNoPair) ++place;
  return place & mask;
}

const BpeModel::Rule* BpeModel::find(std::int32_t left, std::int32_t right) const {
  const Rule& rule = rules_[place_of(pair_key(left, right))];
  return rule.pair == kNoPair ? nullptr : &rule;
}

void BpeModel::enqueue(const Scratch::Symbol& left, std::int32_t position, Scratch& scratch) const {
  if (left.next < 0) return;
  const Rule* rule = find(left.id, scratch.symbols[static_cast<std::size_t>(left.next)].id);
  if (rule == nullptr) return;
  scratch.queue.push_back(std::uint64_t{rule->rank} << 32 | static_cast<std::uint32_t>(position));
  std::push_heap(scratch.queue.begin(), scratch.queue.end(), std::greater<>());
}

void BpeModel::merge_all(Scratch& scratch) const {
  auto& symbols = scratch.symbols;
  auto& queue = scratch.queue;
  queue.clear();
  for (std::size_t i = 0; i < symbols.size(); ++i) {
    enqueue(symbols[i], static_cast<std::int32_t>(i), scratch);
  }
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    const std::uint64_t top = queue.back();
    queue.pop_back();
    const auto position = static_cast<std::int32_t>(top & 0xFFFFFFFFu);
    const std::int32_t merged = merged_[top >> 32];
    Scratch::Symbol& left = symbols[static_cast<std::size_t>(position)];
    if (left.id < 0 || left.next < 0) continue;
    Scratch::Symbol& right = symbols[static_cast<std::size_t>(left.next)];
    // An entry is out of date when its symbols were merged since. Like the original, look at what
    // the present pair makes, not at the pair: two pairs may make the same token.
    const Rule* rule = find(left.id, right.id);
    if (rule == nullptr || rule->merged != merged) continue;
    left.id = merged;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[static_cast<std::size_t>(left.next)].previous = position;
    if (left.previous >= 0) {
      enqueue(symbols[static_cast<std::size_t>(left.previous)], left.previous, scratch);
    }
    enqueue(left, position, scratch);
  }
}

void BpeModel::encode(std::string_view piece,
                      Scratch& scratch,
                      std::vector<std::int32_t>& ids) const {
  MOIETY_CHECK(piece.size() < std::numeric_limits<std::int32_t>::max(), "piece is too long");
  if (ignore_merges_) {
    if (auto token = vocab_.find(byte_level_encode(piece)); token != vocab_.end()) {
      ids.push_back(token->second);
      return;
    }
  }
  auto& symbols = scratch.symbols;
  symbols.clear();
  for (char byte : piece) {
    const auto position = static_cast<std::int32_t>(symbols.size());
    const std::int32_t id = byte_ids_[static_cast<std::uint8_t>(byte)];
    MOIETY_CHECK(id >= 0, "the text is not UTF-8");
    symbols.push_back({id, position - 1, position + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;
  merge_all(scratch);
  for (const Scratch::Symbol& symbol : symbols) {
    if (symbol.id >= 0) ids.push_back(symbol.id);
  }
}

}  // namespace moiety
