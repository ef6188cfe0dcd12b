#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace moiety {

/// Memory that begins at a cache line, which is also the widest vector register: what kernels store
/// there never straddles two lines.
template <class T>
struct CacheLineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kAlignment{64};

  CacheLineAllocator() = default;
  template <class U>
  CacheLineAllocator(const CacheLineAllocator<U>&) {}  // NOLINT: allocators convert

  T* allocate(std::size_t count) {
    return static_cast<T*>(::operator new(count * sizeof(T), kAlignment));
  }
  void deallocate(T* memory, std::size_t) { ::operator delete(memory, kAlignment); }
  bool operator==(const CacheLineAllocator&) const = default;
};

/// Rows of activations.
using AlignedFloats = std::vector<float, CacheLineAllocator<float>>;

/// Floats from one row of `columns` floats to the next: an odd number of cache lines, because rows
/// of a power of two would share few of the cache's sets.
constexpr std::size_t row_stride(std::size_t columns) {
  constexpr std::size_t kLine = 64 / sizeof(float);
  return ((columns + kLine - 1) / kLine | 1) * kLine;
}

}  // namespace moiety
