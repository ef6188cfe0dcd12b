#include "kernels/weight_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <new>

#include "common/check.h"

namespace moiety::kernels {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kRegionSize = std::size_t{64} << 20;
constexpr std::size_t kSmallPage = 4096;
constexpr std::size_t kAlignment = 64;

std::size_t round_up(std::size_t size, std::size_t to) { return (size + to - 1) / to * to; }

/// First fit over regions; neighbouring free blocks are merged.
class WeightMemory {
 public:
  std::byte* allocate(std::size_t size) {
    size = std::max(kAlignment, round_up(size, kAlignment));
    const std::lock_guard lock(mutex_);
    for (auto& [begin, region] : regions_) {
      if (std::byte* memory = take(region, size)) return memory;
    }
    return take(add_region(size), size);
  }

  void free(std::byte* memory) {
    const std::lock_guard lock(mutex_);
    const auto at = std::prev(regions_.upper_bound(memory));
    Region& region = at->second;
    const auto taken = region.taken.find(memory);
    MOIETY_CHECK(taken != region.taken.end(), "memory that was not allocated here");
    const std::size_t size = taken->second;
    region.taken.erase(taken);
    if (region.taken.empty()) {
      ::munmap(at->first, region.size);
      regions_.erase(at);
      return;
    }
    release_pages(memory, size);
    auto block = region.free.emplace(memory, size).first;
    merge_with_next(region, block);
    if (block != region.free.begin()) merge_with_next(region, std::prev(block));
  }

  std::vector<std::span<const std::byte>> in_use() {
    const std::lock_guard lock(mutex_);
    std::vector<std::span<const std::byte>> all;
    for (const auto& [begin, region] : regions_) {
      for (const auto& [memory, size] : region.taken) all.emplace_back(memory, size);
    }
    return all;
  }

 private:
  using Blocks = std::map<std::byte*, std::size_t>;
  struct Region {
    std::size_t size = 0;
    Blocks free;
    Blocks taken;
  };

  static std::byte* take(Region& region, std::size_t size) {
    for (auto block = region.free.begin(); block != region.free.end(); ++block) {
      if (block->second < size) continue;
      std::byte* memory = block->first;
      const std::size_t rest = block->second - size;
      region.free.erase(block);
      if (rest > 0) region.free.emplace(memory + size, rest);
      region.taken.emplace(memory, size);
      return memory;
    }
    return nullptr;
  }

  Region& add_region(std::size_t at_least) {
    const std::size_t size = round_up(std::max(at_least, kRegionSize), kHugePage);
    // One huge page more, so that the region can start at a multiple of it.
    void* mapped = ::mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    auto* first = static_cast<std::byte*>(mapped);
    const std::size_t before = round_up(reinterpret_cast<std::uintptr_t>(first), kHugePage) -
                               reinterpret_cast<std::uintptr_t>(first);
    if (before > 0) ::munmap(first, before);
    if (before < kHugePage) ::munmap(first + before + size, kHugePage - before);
    ::madvise(first + before, size, MADV_HUGEPAGE);  // advice: the system may have none
    Region& region = regions_[first + before];
    region.size = size;
    region.free.emplace(first + before, size);
    return region;
  }

  /// The whole pages within; those at the ends may hold parts of neighbours.
  static void release_pages(std::byte* memory, std::size_t size) {
    const auto begin = round_up(reinterpret_cast<std::uintptr_t>(memory), kSmallPage);
    const auto end = (reinterpret_cast<std::uintptr_t>(memory) + size) / kSmallPage * kSmallPage;
    if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }

  static void merge_with_next(Region& region, Blocks::iterator block) {
    const auto next = std::next(block);
    if (next == region.free.end() || block->first + block->second != next->first) return;
    block->second += next->second;
    region.free.erase(next);
  }

  std::mutex mutex_;
  std::map<std::byte*, Region> regions_;  // guarded by mutex_
};

WeightMemory& weight_memory() {
  static auto* memory = new WeightMemory;  // outlives every matrix, also static ones
  return *memory;
}

}  // namespace

std::byte* allocate_weights(std::size_t size) { return weight_memory().allocate(size); }
std::vector<std::span<const std::byte>> weights_in_use() { return weight_memory().in_use(); }
void free_weights(std::byte* memory) noexcept {
  if (memory != nullptr) weight_memory().free(memory);
}

}  // namespace moiety::kernels
