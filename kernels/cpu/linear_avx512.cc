#include <immintrin.h>

#include "kernels/cpu/avx512_math.h"
#include "kernels/cpu/avx512_store.h"
#include "kernels/cpu/row_blocks.h"

// One output is one chain of fused multiply-adds over k, or with I8 an exact integer. Chains of
// several rows and panels run side by side to fill the latency of the units; how many does not
// touch any chain's bits.
namespace moiety::kernels::avx512 {
namespace {

/// 16 columns of one k (F32), or of one pair of k: the even, then the odd.
struct F32 {
  static constexpr int kSteps = 1;
  static constexpr std::ptrdiff_t kBytes = 64;
  [[gnu::always_inline]] static void load(const std::byte* p, __m512 (&w)[2]) {
    w[0] = _mm512_load_ps(p);
  }
};
/// A pair of BF16 is 32 bits: the even k is the lower half, the odd k the upper, which is a float
/// once the lower is cleared.
struct Bf16 {
  static constexpr int kSteps = 2;
  static constexpr std::ptrdiff_t kBytes = 64;
  [[gnu::always_inline]] static void load(const std::byte* p, __m512 (&w)[2]) {
    const __m512i bits = _mm512_load_si512(p);
    w[0] = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
    w[1] = _mm512_castsi512_ps(
        _mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
};

/// The products of kSteps successive k.
template <int kRows, int kPanels, int kSteps, class Weights>
[[gnu::always_inline]] inline void add_products(const std::byte* weights,
                                                std::ptrdiff_t panel_bytes,
                                                const float* x,
                                                std::ptrdiff_t x_stride,
                                                __m512 (&sums)[kRows][kPanels]) {
  __m512 w[kPanels][2];
  unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
    Weights::load(weights + p.value * panel_bytes, w[p.value]);
  });
  unrolled<kSteps>([&](auto s) __attribute__((always_inline)) {
    unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
      const __m512 input = _mm512_set1_ps(x[r.value * x_stride + s.value]);
      unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
        sums[r.value][p.value] =
            _mm512_fmadd_ps(input, w[p.value][s.value], sums[r.value][p.value]);
      });
    });
  });
}

template <class Weights>
struct Fma {
  static constexpr int max_panels(int) { return 4; }

  template <int kRows, int kPanels>
  static void compute(const LinearTile& tile, std::int32_t panel, std::int32_t row) {
    const std::byte* weights = tile.weights + panel * tile.panel_bytes;
    const auto* x = reinterpret_cast<const float*>(tile.x + row * tile.x_stride);
    const std::ptrdiff_t panel_bytes = tile.panel_bytes;
    const std::ptrdiff_t x_stride = tile.x_stride / static_cast<std::ptrdiff_t>(sizeof(float));
    __m512 sums[kRows][kPanels] = {};
    std::int32_t k = tile.k;
    for (; k >= Weights::kSteps; k -= Weights::kSteps) {
      add_products<kRows, kPanels, Weights::kSteps, Weights>(weights, panel_bytes, x, x_stride,
                                                             sums);
      weights += Weights::kBytes;
      x += Weights::kSteps;
    }
    // The last k of an odd count has no partner: x ends here.
    if (k > 0) add_products<kRows, kPanels, 1, Weights>(weights, panel_bytes, x, x_stride, sums);
    store_sums(tile, panel, row, sums);
  }
};

/// Integer sums: eight columns and four k at a time, two successive k by VPMADDWD.
struct Integers {
  static constexpr int max_panels(int) { return 1; }

  template <int kRows, int kPanels>
  static void compute(const LinearTile& tile, std::int32_t panel, std::int32_t row) {
    const std::byte* weights = tile.weights + panel * tile.panel_bytes;
    const std::byte* x = tile.x + row * tile.x_stride;
    const std::ptrdiff_t x_stride = tile.x_stride;
    __m512i sums[kRows][2] = {};
    for (std::int32_t k = 0; k < tile.k; k += 4) {
      const auto* bytes = reinterpret_cast<const __m256i*>(weights);
      const __m512i first = _mm512_cvtepu8_epi16(_mm256_load_si256(bytes));
      const __m512i second = _mm512_cvtepu8_epi16(_mm256_load_si256(bytes + 1));
      unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
        std::int64_t four;
        __builtin_memcpy(&four, x + r.value * x_stride, sizeof four);
        const __m512i input = _mm512_set1_epi64(four);
        auto& halves = sums[r.value];
        halves[0] = _mm512_add_epi32(halves[0], _mm512_madd_epi16(first, input));
        halves[1] = _mm512_add_epi32(halves[1], _mm512_madd_epi16(second, input));
      });
      weights += 64;
      x += 8;
    }
    __m512 outputs[kRows][1];
    unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
      const auto& halves = sums[r.value];
      const __m512i all = _mm512_add_epi32(_mm512_permutex2var_epi32(halves[0], even(), halves[1]),
                                           _mm512_permutex2var_epi32(halves[0], odd(), halves[1]));
      outputs[r.value][0] = scaled_integers(tile, row + r.value, panel * kPanelColumns, all);
    });
    store_sums(tile, panel, row, outputs);
  }

 private:
  [[gnu::always_inline]] static __m512i even() {
    return _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  }
  [[gnu::always_inline]] static __m512i odd() {
    return _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  }
};

}  // namespace

void linear_tile(const LinearTile& tile) {
  switch (tile.type) {
    case WeightType::kF32:
      return RowBlocks<Fma<F32>, 6, 4>::all(tile);
    case WeightType::kBF16:
      return RowBlocks<Fma<Bf16>, 6, 4>::all(tile);
    case WeightType::kI8:
      return RowBlocks<Integers, 6, 1>::all(tile);
  }
}

void to_bf16(const float* x, std::size_t size, std::uint16_t* half) {
  for (std::size_t i = 0; i < size; i += 16) {
    const std::size_t left = size - i;
    const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffffu : (1u << left) - 1);
    const __m512i rounded = round_bits(_mm512_maskz_loadu_ps(mask, x + i));
    _mm256_mask_storeu_epi16(half + i, mask, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
}

}  // namespace moiety::kernels::avx512
