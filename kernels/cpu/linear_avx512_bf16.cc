#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/avx512_store.h"
#include "kernels/cpu/row_blocks.h"

// One output is one chain of VDPBF16PS over pairs of k. Chains of several rows and panels run side
// by side; how many does not touch any chain's bits.
namespace moiety::kernels::avx512_bf16 {
namespace {

/// 16 columns of one pair of k. The CPU itself fetches them in time: prefetches made it slower.
struct Bf16 {
  static constexpr int kPairs = 1;
  static constexpr std::ptrdiff_t kBytes = 64;
  static constexpr std::ptrdiff_t kAhead = 0;  ///< bytes to what is fetched meanwhile
  [[gnu::always_inline]] void load(const std::byte* p, __m512bh (&w)[kPairs]) const {
    w[0] = reinterpret_cast<__m512bh>(_mm512_load_si512(p));
  }
};

/// Integers up to 127 are exact in BF16. Converted: dear, but on units that products leave free.
struct I8 {
  static constexpr int kPairs = 1;
  static constexpr std::ptrdiff_t kBytes = 32;
  static constexpr std::ptrdiff_t kAhead = 4096;
  [[gnu::always_inline]] static __m512 floats(const std::byte* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p))));
  }
  [[gnu::always_inline]] void load(const std::byte* p, __m512bh (&w)[kPairs]) const {
    w[0] = _mm512_cvtne2ps_pbh(floats(p + 16), floats(p));
  }
};

/// Both bytes of the BF16 of 0 to 127, and where they go: for each of 32 weights its lower, then
/// its upper byte, of the first pair of k and of the second.
struct I8Tables {
  std::uint8_t lower[128], upper[128], first[64], second[64];
};
constexpr I8Tables make_tables() {
  I8Tables tables{};
  for (unsigned q = 1; q < 128; ++q) {
    unsigned exponent = 0;
    while (q >> (exponent + 1) != 0) ++exponent;
    const unsigned bits = (127 + exponent) << 7 | ((q << (7 - exponent)) & 0x7f);
    tables.lower[q] = static_cast<std::uint8_t>(bits);
    tables.upper[q] = static_cast<std::uint8_t>(bits >> 8);
  }
  for (unsigned i = 0; i < 32; ++i) {
    tables.first[2 * i] = static_cast<std::uint8_t>(i);
    tables.first[2 * i + 1] = static_cast<std::uint8_t>(64 + i);
    tables.second[2 * i] = static_cast<std::uint8_t>(32 + i);
    tables.second[2 * i + 1] = static_cast<std::uint8_t>(96 + i);
  }
  return tables;
}
alignas(64) constexpr I8Tables kTables = make_tables();

/// The same BF16 looked up, two pairs of k at a time: a third of the instructions, but on a unit
/// that products need too.
class I8Lookup {
 public:
  static constexpr int kPairs = 2;
  static constexpr std::ptrdiff_t kBytes = 64;
  static constexpr std::ptrdiff_t kAhead = 4096;
  using Rest = I8;
  [[gnu::always_inline]] void load(const std::byte* p, __m512bh (&w)[kPairs]) const {
    const __m512i q = _mm512_loadu_si512(p);  // panels of odd pairs begin at 32 bytes
    const __m512i magnitude = _mm512_abs_epi8(q);
    const __m512i lower = _mm512_permutex2var_epi8(lower_[0], magnitude, lower_[1]);
    const __m512i unsigned_upper = _mm512_permutex2var_epi8(upper_[0], magnitude, upper_[1]);
    const __m512i upper = _mm512_ternarylogic_epi32(unsigned_upper, q, sign_, 0xf8);  // a | (b & c)
    w[0] = reinterpret_cast<__m512bh>(_mm512_permutex2var_epi8(lower, first_, upper));
    w[1] = reinterpret_cast<__m512bh>(_mm512_permutex2var_epi8(lower, second_, upper));
  }

 private:
  __m512i lower_[2] = {_mm512_load_si512(kTables.lower), _mm512_load_si512(kTables.lower + 64)};
  __m512i upper_[2] = {_mm512_load_si512(kTables.upper), _mm512_load_si512(kTables.upper + 64)};
  __m512i first_ = _mm512_load_si512(kTables.first);
  __m512i second_ = _mm512_load_si512(kTables.second);
  __m512i sign_ = _mm512_set1_epi8(static_cast<char>(0x80));
};

/// The products of Weights::kPairs successive pairs of k.
template <class Weights, int kRows, int kPanels>
[[gnu::always_inline]] inline void add_products(const Weights& load,
                                                const std::byte* weights,
                                                std::ptrdiff_t panel_bytes,
                                                const std::uint16_t* x,
                                                std::ptrdiff_t x_stride,
                                                __m512 (&sums)[kRows][kPanels]) {
  __m512bh w[kPanels][Weights::kPairs];
  unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
    load.load(weights + p.value * panel_bytes, w[p.value]);
  });
  unrolled<Weights::kPairs>([&](auto s) __attribute__((always_inline)) {
    unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
      std::int32_t bits;
      __builtin_memcpy(&bits, x + r.value * x_stride + 2 * s.value, sizeof bits);
      const auto input = reinterpret_cast<__m512bh>(_mm512_set1_epi32(bits));
      unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
        sums[r.value][p.value] =
            _mm512_dpbf16_ps(sums[r.value][p.value], input, w[p.value][s.value]);
      });
    });
  });
}

template <class Weights>
struct Dot {
  static constexpr int max_panels(int) { return 4; }

  template <int kRows, int kPanels>
  static void compute(const LinearTile& tile, std::int32_t panel, std::int32_t row) {
    const std::byte* weights = tile.weights + panel * tile.panel_bytes;
    const std::uint16_t* x = tile.x_bf16 + row * tile.x_stride;
    const std::ptrdiff_t panel_bytes = tile.panel_bytes;
    const std::ptrdiff_t x_stride = tile.x_stride;
    const Weights load;
    __m512 sums[kRows][kPanels] = {};
    std::int32_t pairs = (tile.k + 1) / 2;
    for (; pairs >= Weights::kPairs; pairs -= Weights::kPairs) {
      // One panel is one stream, which runs on into the next panel.
      if constexpr (Weights::kAhead != 0 && kPanels == 1) {
        _mm_prefetch(weights + Weights::kAhead, _MM_HINT_T0);
      }
      add_products(load, weights, panel_bytes, x, x_stride, sums);
      weights += Weights::kBytes;
      x += 2 * Weights::kPairs;
    }
    if constexpr (Weights::kPairs > 1) {
      const typename Weights::Rest load_one;
      if (pairs > 0) add_products(load_one, weights, panel_bytes, x, x_stride, sums);
    }
    store_sums(tile, panel, row, sums);
  }
};

}  // namespace

// Few rows: the weights come from memory, and one stream of them is faster than four. More rows: a
// row's input is loaded once for four panels. I8 weights cost more to load than inputs do, so they
// serve as many rows as there are registers; of one or two rows a panel's chain takes longer than
// its memory, so four panels run side by side.
void linear_tile(const LinearTile& tile) {
  if (tile.type == WeightType::kI8) {
    if (tile.rows <= 2) {
      RowBlocks<Dot<I8Lookup>, 2, 4>::all(tile);
    } else if (tile.rows <= 5) {
      RowBlocks<Dot<I8Lookup>, 5, 1>::all(tile);
    } else {
      RowBlocks<Dot<I8>, 12, 1>::all(tile);
    }
  } else if (tile.rows <= 4) {
    RowBlocks<Dot<Bf16>, 4, 1>::all(tile);
  } else {
    RowBlocks<Dot<Bf16>, 6, 4>::all(tile);
  }
}

}  // namespace moiety::kernels::avx512_bf16
