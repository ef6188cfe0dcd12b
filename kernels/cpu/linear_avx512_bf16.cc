#include <immintrin.h>

#include "kernels/cpu/avx512_store.h"
#include "kernels/cpu/row_blocks.h"

// One output is one chain of VDPBF16PS over pairs of k. Chains of several rows and panels run side
// by side; how many does not touch any chain's bits.
namespace moiety::kernels::avx512_bf16 {
namespace {

/// 16 columns of one pair of k.
struct Bf16 {
  static constexpr std::ptrdiff_t kBytes = 64;
  [[gnu::always_inline]] static __m512bh load(const std::byte* p) {
    return reinterpret_cast<__m512bh>(_mm512_load_si512(p));
  }
};
/// Integers up to 127 are exact in BF16.
struct I8 {
  static constexpr std::ptrdiff_t kBytes = 32;
  [[gnu::always_inline]] static __m512 floats(const std::byte* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p))));
  }
  [[gnu::always_inline]] static __m512bh load(const std::byte* p) {
    return _mm512_cvtne2ps_pbh(floats(p + 16), floats(p));
  }
};

template <class Weights>
struct Dot {
  static constexpr int max_panels(int) { return 4; }

  template <int kRows, int kPanels>
  static void compute(const LinearTile& tile, std::int32_t panel, std::int32_t row) {
    const std::byte* weights = tile.weights + panel * tile.panel_bytes;
    const std::uint16_t* x = tile.x_bf16 + row * tile.x_stride;
    const std::ptrdiff_t panel_bytes = tile.panel_bytes;
    const std::ptrdiff_t x_stride = tile.x_stride;
    __m512 sums[kRows][kPanels] = {};
    for (std::int32_t pair = (tile.k + 1) / 2; pair > 0; --pair) {
      // One panel is one stream, which runs on into the next panel.
      if constexpr (kPanels == 1) _mm_prefetch(weights + kAhead, _MM_HINT_T0);
      __m512bh w[kPanels];
      unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
        w[p.value] = Weights::load(weights + p.value * panel_bytes);
      });
      unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
        std::int32_t bits;
        __builtin_memcpy(&bits, x + r.value * x_stride, sizeof bits);
        const auto input = reinterpret_cast<__m512bh>(_mm512_set1_epi32(bits));
        unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
          sums[r.value][p.value] = _mm512_dpbf16_ps(sums[r.value][p.value], input, w[p.value]);
        });
      });
      weights += Weights::kBytes;
      x += 2;
    }
    store_sums(tile, panel, row, sums);
  }

 private:
  static constexpr std::ptrdiff_t kAhead = 4096;
};

}  // namespace

// Few rows: the weights come from memory, and one stream of them is faster than four. Many rows:
// the weights are in the cache, and a row's input is loaded once for four panels. I8 weights cost
// more to load than inputs do, so they serve as many rows as there are registers.
void linear_tile(const LinearTile& tile) {
  if (tile.type == WeightType::kI8) {
    RowBlocks<Dot<I8>, 12, 1>::all(tile);
  } else if (tile.rows <= 6) {
    RowBlocks<Dot<Bf16>, 6, 1>::all(tile);
  } else {
    RowBlocks<Dot<Bf16>, 6, 4>::all(tile);
  }
}

}  // namespace moiety::kernels::avx512_bf16
