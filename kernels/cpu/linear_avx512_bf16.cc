#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/avx512_store.h"
#include "kernels/cpu/row_blocks.h"

// One output is one chain of VDPBF16PS over pairs of k, or with I8 an exact integer, by VPDPBUSD of
// bytes of weights and digits of inputs. Chains of several rows and panels run side by side; how
// many does not touch any chain's bits.
namespace moiety::kernels::avx512_bf16 {
namespace {

[[gnu::always_inline]] inline __m512i broadcast_word(const std::byte* p) {
  std::int32_t bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return _mm512_set1_epi32(bits);
}

struct Bf16 {
  static constexpr int max_panels(int) { return 4; }

  template <int kRows, int kPanels>
  static void compute(const LinearTile& tile, std::int32_t panel, std::int32_t row) {
    const std::byte* weights = tile.weights + panel * tile.panel_bytes;
    const std::byte* x = tile.x + row * tile.x_stride;
    const std::ptrdiff_t panel_bytes = tile.panel_bytes;
    const std::ptrdiff_t x_stride = tile.x_stride;
    __m512 sums[kRows][kPanels] = {};
    for (std::int32_t k = 0; k < tile.k; k += 2) {
      __m512bh w[kPanels];
      unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
        w[p.value] = reinterpret_cast<__m512bh>(_mm512_load_si512(weights + p.value * panel_bytes));
      });
      unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
        const auto input = reinterpret_cast<__m512bh>(broadcast_word(x + r.value * x_stride));
        unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
          sums[r.value][p.value] = _mm512_dpbf16_ps(sums[r.value][p.value], input, w[p.value]);
        });
      });
      weights += 64;
      x += 4;
    }
    store_sums(tile, panel, row, sums);
  }
};

struct I8 {
  static constexpr int max_panels(int) { return 2; }

  template <int kRows, int kPanels>
  static void compute(const LinearTile& tile, std::int32_t panel, std::int32_t row) {
    const std::byte* weights = tile.weights + panel * tile.panel_bytes;
    const std::byte* x = tile.x + row * tile.x_stride;
    const std::ptrdiff_t panel_bytes = tile.panel_bytes;
    const std::ptrdiff_t x_stride = tile.x_stride;
    __m512i upper[kRows][kPanels] = {};
    __m512i lower[kRows][kPanels] = {};
    // A block's upper digits, then its lower ones.
    for (std::int32_t left = tile.k; left > 0; left -= kInputPadding) {
      const std::int32_t count = left < kInputPadding ? left : kInputPadding;
      for (std::int32_t k = 0; k < count; k += 4) {
        __m512i w[kPanels];
        unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
          w[p.value] = _mm512_load_si512(weights + p.value * panel_bytes);
        });
        unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
          const __m512i high = broadcast_word(x + r.value * x_stride + k);
          const __m512i low = broadcast_word(x + r.value * x_stride + kInputPadding + k);
          unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
            __m512i& high_sum = upper[r.value][p.value];
            __m512i& low_sum = lower[r.value][p.value];
            high_sum = _mm512_dpbusd_epi32(high_sum, w[p.value], high);
            low_sum = _mm512_dpbusd_epi32(low_sum, w[p.value], low);
          });
        });
        weights += 64;
      }
      x += 2 * kInputPadding;
    }
    __m512 outputs[kRows][kPanels];
    unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
      unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
        const __m512i sums = _mm512_add_epi32(_mm512_slli_epi32(upper[r.value][p.value], 8),
                                              lower[r.value][p.value]);
        outputs[r.value][p.value] =
            scaled_integers(tile, row + r.value, (panel + p.value) * kPanelColumns, sums);
      });
    });
    store_sums(tile, panel, row, outputs);
  }
};

}  // namespace

// Few rows: the weights come from memory, one stream of them is faster than four, and the CPU
// itself fetches it in time: prefetches made it slower. More rows: a row's input is loaded once for
// several panels.
void linear_tile(const LinearTile& tile) {
  if (tile.type == WeightType::kI8) {
    if (tile.rows <= 6) {
      RowBlocks<I8, 6, 1>::all(tile);
    } else {
      RowBlocks<I8, 6, 2>::all(tile);
    }
  } else if (tile.rows <= 4) {
    RowBlocks<Bf16, 4, 1>::all(tile);
  } else {
    RowBlocks<Bf16, 6, 4>::all(tile);
  }
}

}  // namespace moiety::kernels::avx512_bf16
