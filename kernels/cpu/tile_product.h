#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/unrolled.h"
#include "kernels/implementations.h"

/// The matrix product inside attention: rows of floats times keys or values of the KV cache.
///
/// For files that are compiled for one instruction set. Instantiate with a V of an unnamed
/// namespace only, so that no copy is shared between such files. V is one width of vectors:
///
///   Reg, kLanes (8 or 16), kMaxRows (queries side by side), kMaxSums (registers that hold sums)
///   load, store, broadcast(p), zero, fma(a, b, c) = a * b + c, mul, add, sub, div, max, exp
///   load_first(p, n), store_first(p, v, n)  the first n lanes; zeros behind; nothing else touched
///   load_pair(p, even, odd)          2 * kLanes BF16: those of even and of odd index
///   load_pair_first(p, n, even, odd) the first n pairs
///   load_half(p)                     kLanes BF16
///   keep(v, first, end)              lanes [first, end) of v, minus infinity elsewhere
///   max_lanes(v), sum_span(v[])      across the lanes of v, of all v; in a fixed order
namespace moiety::kernels::tiles {

using bf16 = std::uint16_t;

/// Tokens whose scores enter the softmax together; also floats of a row of the product's left side,
/// so that row addresses are constants.
inline constexpr std::int32_t kSpanTokens = 64;

/// Asks for kRows rows of 16 elements.
template <int kRows, class T>
[[gnu::always_inline]] inline void fetch(const T* p) {
  unrolled<kRows * sizeof(T) / 4>([&](auto line) __attribute__((always_inline)) {
    __builtin_prefetch(reinterpret_cast<const std::byte*>(p) + line.value * 64, 0, 2);
  });
}

/// Keys of several blocks: vector c holds kLanes tokens; steps run over head_dim.
template <class V, class T, int kBlocks>
struct Keys {
  static constexpr std::int32_t kVectors = kBlockTokens / V::kLanes;  // of one block
  using Reg = typename V::Reg;
  const T* blocks[kBlocks];
  const T* ahead[kBlocks];  // to be fetched meanwhile

  [[gnu::always_inline]] void skip(std::int32_t d) {
    for (std::int32_t b = 0; b < kBlocks; ++b) {
      blocks[b] += std::ptrdiff_t{d} * kBlockTokens;
      ahead[b] += std::ptrdiff_t{d} * kBlockTokens;
    }
  }
  template <int kColumn>
  [[gnu::always_inline]] const T* at(std::int32_t d, int elements) const {
    return blocks[kColumn / kVectors] + std::ptrdiff_t{d} * kBlockTokens +
           kColumn % kVectors * V::kLanes * elements;
  }
  template <int kColumn>
  [[gnu::always_inline]] void pair(std::int32_t d, Reg& even, Reg& odd) const {
    if constexpr (kColumn % kVectors == 0) {
      fetch<2>(ahead[kColumn / kVectors] + std::ptrdiff_t{d} * kBlockTokens);
    }
    if constexpr (sizeof(T) == sizeof(bf16)) {
      V::load_pair(at<kColumn>(d, 2), even, odd);
    } else {
      even = V::load(at<kColumn>(d, 1));
      odd = V::load(at<kColumn>(d + 1, 1));
    }
  }
  template <int kColumn>
  [[gnu::always_inline]] Reg single(std::int32_t d) const {
    if constexpr (sizeof(T) == sizeof(bf16)) {
      return V::load_half(at<kColumn>(d, 1));
    } else {
      return V::load(at<kColumn>(d, 1));
    }
  }
};

/// Values of one block: vector c holds kLanes columns; steps run over tokens. kPart: only the first
/// `columns` lanes exist.
template <class V, class T, bool kPart>
struct Values {
  using Reg = typename V::Reg;
  const T* block;  // of the first column
  const T* ahead;  // to be fetched meanwhile
  std::int32_t head_dim;
  std::int32_t columns;

  [[gnu::always_inline]] Reg load(const float* p) const {
    if constexpr (kPart) return V::load_first(p, columns);
    return V::load(p);
  }
  template <int kColumn>
  [[gnu::always_inline]] void pair(std::int32_t token, Reg& even, Reg& odd) const {
    if constexpr (sizeof(T) == sizeof(bf16)) {
      const T* p = block + std::ptrdiff_t{token} * head_dim + 2 * kColumn * V::kLanes;
      if constexpr (kColumn * V::kLanes % 16 == 0) {
        __builtin_prefetch(ahead + std::ptrdiff_t{token} * head_dim + 2 * kColumn * V::kLanes, 0,
                           2);
      }
      if constexpr (kPart) {
        V::load_pair_first(p, columns, even, odd);
      } else {
        V::load_pair(p, even, odd);
      }
    } else {
      const T* p = block + std::ptrdiff_t{token} * head_dim + kColumn * V::kLanes;
      if constexpr (kColumn * V::kLanes % 16 == 0) {
        const T* next = ahead + std::ptrdiff_t{token} * head_dim + kColumn * V::kLanes;
        __builtin_prefetch(next, 0, 2);
        __builtin_prefetch(next + head_dim, 0, 2);
      }
      even = load(p);
      odd = load(p + head_dim);
    }
  }
  template <int kColumn>
  [[gnu::always_inline]] Reg single(std::int32_t token) const {
    if constexpr (sizeof(T) == sizeof(bf16)) {
      Reg even, odd;
      pair<kColumn>(token & ~1, even, odd);
      return token % 2 == 0 ? even : odd;
    } else {
      return load(block + std::ptrdiff_t{token} * head_dim + kColumn * V::kLanes);
    }
  }
};

/// sums[r][c] += a[r * kSpanTokens + i] * source[i][c] for i in [begin, end), in order.
template <class V, int kRows, int kColumns, class Source>
[[gnu::always_inline]] inline void multiply(const Source& source,
                                            std::int32_t begin,
                                            std::int32_t end,
                                            const float* a,
                                            typename V::Reg (&sums)[kRows][kColumns]) {
  using Reg = typename V::Reg;
  const auto add = [&](std::int32_t i, const Reg(&b)[kColumns]) __attribute__((always_inline)) {
    unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
      const Reg factor = V::broadcast(a + r.value * kSpanTokens + i);
      unrolled<kColumns>([&](auto c) __attribute__((always_inline)) {
        sums[r.value][c.value] = V::fma(factor, b[c.value], sums[r.value][c.value]);
      });
    });
  };
  const auto add_single = [&](std::int32_t i) __attribute__((always_inline)) {
    Reg b[kColumns];
    unrolled<kColumns>([&](auto c) __attribute__((always_inline)) {
      b[c.value] = source.template single<c.value>(i);
    });
    add(i, b);
  };
  std::int32_t i = begin;
  if (i % 2 != 0 && i < end) add_single(i++);
  for (; i + 2 <= end; i += 2) {
    Reg even[kColumns], odd[kColumns];
    unrolled<kColumns>([&](auto c) __attribute__((always_inline)) {
      source.template pair<c.value>(i, even[c.value], odd[c.value]);
    });
    add(i, even);
    add(i + 1, odd);
  }
  if (i < end) add_single(i);
}

}  // namespace moiety::kernels::tiles
