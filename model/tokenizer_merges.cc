#include "model/tokenizer_merges.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <functional>
#include <limits>

#include "common/check.h"
#include "common/utf8.h"

namespace moiety {
namespace {

// Up to here looking at all pairs again beats a heap.
constexpr std::size_t kFew = 64;

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

std::int32_t merged_of(std::uint64_t result) {
  return static_cast<std::int32_t>(result & 0xFFFFFFFFu);
}

}  // namespace

Result<MergeRules> MergeRules::build(const Vocabulary& vocab, const std::vector<Merge>& merges) {
  MergeRules rules;
  rules.rules_.assign(std::bit_ceil(2 * merges.size() + 2), Rule{kNone, 0});
  rules.pairs_.resize(kPairBits / 64);
  rules.joins_.resize(kJoinBits / 64);
  rules.low_rules_.assign(std::size_t{kLowIds} * kLowIds, kNone);
  std::uint64_t rank = 0;
  std::string text;
  for (const Merge& merge : merges) {
    const auto id_of = [&](std::string_view token) -> Result<std::int32_t> {
      const std::int32_t id = vocab.find(token);
      if (id >= 0) return id;
      return fail(ErrorCode::kInvalidArgument,
                  fmt::format("merges[{}]: token '{}' is not in vocab", rank, token));
    };
    MOIETY_ASSIGN(const std::int32_t left, id_of(merge.left));
    MOIETY_ASSIGN(const std::int32_t right, id_of(merge.right));
    text.assign(merge.left).append(merge.right);
    MOIETY_ASSIGN(const std::int32_t merged, id_of(text));
    const std::uint64_t pair = pair_key(left, right);
    const std::uint64_t result = rank++ << 32 | static_cast<std::uint32_t>(merged);
    rules.rules_[rules.place_of(pair)] = {pair, result};
    const std::size_t pair_bit = hash_of(pair) % kPairBits;
    rules.pairs_[pair_bit / 64] |= std::uint64_t{1} << pair_bit % 64;
    const auto low = static_cast<std::int32_t>(kLowIds);
    if (left < low && right < low) {
      rules.low_rules_[static_cast<std::uint32_t>(left) * kLowIds +
                       static_cast<std::uint32_t>(right)] = result;
    }
    for (const std::int32_t id : {left, right}) {
      const auto index = static_cast<std::size_t>(id);
      if (index >= rules.used_.size()) rules.used_.resize(index + 1);
      rules.used_[index] = true;
    }
    if (merge.left.empty() || merge.right.empty()) continue;
    const std::size_t bit =
        bit_of(last_code_point(merge.left).value, first_code_point(merge.right).value);
    rules.joins_[bit / 64] |= std::uint64_t{1} << bit % 64;
  }
  return rules;
}

bool MergeRules::uses(std::int32_t id) const {
  const auto index = static_cast<std::size_t>(id);
  return index < used_.size() && used_[index];
}

// Fibonacci hashing; the upper half of the product is the well mixed one.
std::uint64_t MergeRules::hash_of(std::uint64_t pair) {
  return (pair ^ pair >> 29) * 0x9E3779B97F4A7C15u >> 32;
}

std::size_t MergeRules::place_of(std::uint64_t pair) const {
  const std::size_t mask = rules_.size() - 1;
  std::size_t place = hash_of(pair);
  while (rules_[place & mask].pair != pair && rules_[place & mask].pair != kNone) ++place;
  return place & mask;
}

std::uint64_t MergeRules::find(std::int32_t left, std::int32_t right) const {
  const auto a = static_cast<std::uint32_t>(left);
  const auto b = static_cast<std::uint32_t>(right);
  if (a < kLowIds && b < kLowIds) return low_rules_[a * kLowIds + b];
  const std::uint64_t pair = pair_key(left, right);
  const std::size_t bit = hash_of(pair) % kPairBits;
  if ((pairs_[bit / 64] >> bit % 64 & 1) == 0) return kNone;
  const Rule& rule = rules_[place_of(pair)];
  return rule.pair == kNone ? kNone : rule.result;
}

void MergeRules::apply(std::vector<std::int32_t>& ids, Scratch& scratch) const {
  if (ids.size() < 2) return;
  if (ids.size() <= kFew) {
    merge_few(ids);
  } else {
    merge_many(ids, scratch);
  }
}

void MergeRules::merge_few(std::vector<std::int32_t>& ids) const {
  std::array<std::uint64_t, kFew> results;  // of the pair that starts here
  std::size_t pairs = ids.size() - 1;
  for (std::size_t i = 0; i < pairs; ++i) results[i] = find(ids[i], ids[i + 1]);
  while (pairs > 0) {
    std::size_t best = 0;
    for (std::size_t i = 1; i < pairs; ++i) {
      if (results[i] < results[best]) best = i;
    }
    if (results[best] == kNone) break;
    ids[best] = merged_of(results[best]);
    --pairs;
    for (std::size_t i = best; i < pairs; ++i) {
      ids[i + 1] = ids[i + 2];
      results[i] = results[i + 1];
    }
    if (best > 0) results[best - 1] = find(ids[best - 1], ids[best]);
    if (best < pairs) results[best] = find(ids[best], ids[best + 1]);
  }
  ids.resize(pairs + 1);
}

void MergeRules::enqueue(const Scratch::Symbol& left,
                         std::int32_t position,
                         Scratch& scratch) const {
  if (left.next < 0) return;
  const std::uint64_t result =
      find(left.id, scratch.symbols[static_cast<std::size_t>(left.next)].id);
  if (result == kNone) return;
  scratch.queue.push_back((result >> 32) << 32 | static_cast<std::uint32_t>(position));
  std::push_heap(scratch.queue.begin(), scratch.queue.end(), std::greater<>());
}

void MergeRules::merge_many(std::vector<std::int32_t>& ids, Scratch& scratch) const {
  MOIETY_CHECK(ids.size() < std::numeric_limits<std::int32_t>::max(), "piece is too long");
  auto& symbols = scratch.symbols;
  auto& queue = scratch.queue;
  symbols.clear();
  for (const std::int32_t id : ids) {
    const auto position = static_cast<std::int32_t>(symbols.size());
    symbols.push_back({id, position - 1, position + 1});
  }
  symbols.back().next = -1;
  queue.clear();
  for (std::size_t i = 0; i < symbols.size(); ++i) {
    enqueue(symbols[i], static_cast<std::int32_t>(i), scratch);
  }
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    const std::uint64_t top = queue.back();
    queue.pop_back();
    const auto position = static_cast<std::int32_t>(top & 0xFFFFFFFFu);
    Scratch::Symbol& left = symbols[static_cast<std::size_t>(position)];
    if (left.id < 0 || left.next < 0) continue;
    Scratch::Symbol& right = symbols[static_cast<std::size_t>(left.next)];
    // An entry is out of date when its symbols were merged since; the pair that is there now has
    // an entry of its own.
    const std::uint64_t result = find(left.id, right.id);
    if (result == kNone || result >> 32 != top >> 32) continue;
    left.id = merged_of(result);
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[static_cast<std::size_t>(left.next)].previous = position;
    if (left.previous >= 0) {
      enqueue(symbols[static_cast<std::size_t>(left.previous)], left.previous, scratch);
    }
    enqueue(left, position, scratch);
  }
  ids.clear();
  for (const Scratch::Symbol& symbol : symbols) {
    if (symbol.id >= 0) ids.push_back(symbol.id);
  }
}

}  // namespace moiety
