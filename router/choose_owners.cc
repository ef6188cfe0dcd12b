#include "router/choose_owners.h"

#include <algorithm>

namespace moiety {
namespace {

/// One round of splitmix64.
std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  hash = (hash ^ value) + 0x9e37'79b9'7f4a'7c15u;
  hash = (hash ^ (hash >> 30)) * 0xbf58'476d'1ce4'e5b9u;
  hash = (hash ^ (hash >> 27)) * 0x94d0'49bb'1331'11ebu;
  return hash ^ (hash >> 31);
}

bool holds(const std::vector<WorkerId>& owners, WorkerId worker) {
  return std::find(owners.begin(), owners.end(), worker) != owners.end();
}

}  // namespace

std::uint64_t hash_experts(std::span<const std::int32_t> experts) {
  std::uint64_t hash = 0x51ed'270b'4d2f'91c3u;
  for (const std::int32_t expert : experts) hash = mix(hash, static_cast<std::uint64_t>(expert));
  return hash;
}

void choose_owners(std::span<const std::vector<WorkerId>* const> owners,
                   std::uint64_t row_hash,
                   std::span<WorkerId> chosen) {
  std::vector<std::size_t> open;  // slots that have a choice
  for (std::size_t slot = 0; slot < owners.size(); ++slot) {
    if (owners[slot]->size() == 1) {
      chosen[slot] = owners[slot]->front();
    } else {
      open.push_back(slot);
    }
  }
  if (open.empty()) return;
  std::vector<WorkerId> asked;
  for (std::size_t slot = 0; slot < owners.size(); ++slot) {
    if (owners[slot]->size() == 1) asked.push_back(chosen[slot]);
  }
  const auto rank = [&](WorkerId worker) { return mix(row_hash, worker.value); };
  // Gives every slot that an asked worker holds to the first of them by rank.
  const auto settle = [&] {
    std::erase_if(open, [&](std::size_t slot) {
      const WorkerId* best = nullptr;
      for (const WorkerId& worker : asked) {
        if (holds(*owners[slot], worker) && (best == nullptr || rank(worker) < rank(*best)))
          best = &worker;
      }
      if (best == nullptr) return false;
      chosen[slot] = *best;
      return true;
    });
  };
  settle();
  while (!open.empty()) {
    WorkerId best{};
    std::size_t best_count = 0;
    for (const std::size_t slot : open) {
      for (const WorkerId worker : *owners[slot]) {
        const auto count = static_cast<std::size_t>(std::count_if(
            open.begin(), open.end(), [&](std::size_t s) { return holds(*owners[s], worker); }));
        if (count > best_count || (count == best_count && rank(worker) < rank(best))) {
          best = worker;
          best_count = count;
        }
      }
    }
    asked.assign(1, best);
    settle();
  }
}

}  // namespace moiety
