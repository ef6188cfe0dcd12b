#include <immintrin.h>

#include "kernels/cpu/row_blocks.h"
#include "kernels/cpu/unrolled.h"

// One output is one chain of fused multiply-adds over k. Chains of several rows or panels run side
// by side to fill the latency of the units; how many does not touch any chain's bits.
namespace moiety::kernels::avx2 {
namespace {

// One k of a panel in F32, or one pair of k in BF16.
constexpr std::ptrdiff_t kStepBytes = 64;
// One pair of k in I8.
constexpr std::ptrdiff_t kStepBytesI8 = 32;

/// Sums of kRows x kPanels panels; a panel's 16 columns are two vectors.
template <int kRows, int kPanels>
struct Sums {
  __m256 low[kRows][kPanels];
  __m256 high[kRows][kPanels];
};

/// The rows of x at one k. Two pointers reach six rows without a register for each.
struct Inputs {
  const float* first;   ///< rows 0, 1, 2
  const float* second;  ///< rows 3, 4, 5
  std::ptrdiff_t stride;

  template <int kRow>
  [[gnu::always_inline]] __m256 broadcast(std::ptrdiff_t offset) const {
    const float* row = kRow < 3 ? first + kRow * stride : second + (kRow - 3) * stride;
    return _mm256_broadcast_ss(row + offset);
  }
  [[gnu::always_inline]] void advance(std::ptrdiff_t count) {
    first += count;
    second += count;
  }
};

enum class Half { kF32, kEven, kOdd, kEvenI8, kOddI8 };

/// 8 weights as floats; `p` is where their pairs begin. A pair of BF16 is 32 bits: the even k is
/// the lower half, the odd k the upper, which is a float once the lower is cleared.
template <Half kHalf>
[[gnu::always_inline]] inline __m256 load_weights(const std::byte* p) {
  if constexpr (kHalf == Half::kEvenI8 || kHalf == Half::kOddI8) {
    const __m256i wide = _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
    const __m256i one = kHalf == Half::kEvenI8 ? _mm256_slli_epi32(wide, 16) : wide;
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(one, 16));
  }
  const __m256i bits = _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
  if constexpr (kHalf == Half::kEven) return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  if constexpr (kHalf == Half::kOdd) {
    return _mm256_castsi256_ps(
        _mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  return _mm256_castsi256_ps(bits);
}

/// Adds the products of one k to every sum.
template <int kRows, int kPanels, Half kHalf>
[[gnu::always_inline]] inline void add_products(const std::byte* weights,
                                                std::ptrdiff_t panel_bytes,
                                                const Inputs& inputs,
                                                Sums<kRows, kPanels>& sums) {
  unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
    const std::byte* panel = weights + p.value * panel_bytes;
    const __m256 low = load_weights<kHalf>(panel);
    constexpr bool kIsI8 = kHalf == Half::kEvenI8 || kHalf == Half::kOddI8;
    const __m256 high = load_weights<kHalf>(panel + (kIsI8 ? 16 : 32));
    unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
      const __m256 input =
          inputs.broadcast<r.value>(kHalf == Half::kOdd || kHalf == Half::kOddI8 ? 1 : 0);
      __m256& low_sum = sums.low[r.value][p.value];
      __m256& high_sum = sums.high[r.value][p.value];
      low_sum = _mm256_fmadd_ps(input, low, low_sum);
      high_sum = _mm256_fmadd_ps(input, high, high_sum);
      // Pins the order: left alone, g++ 12 starts loads so early that sums spill out of the 16
      // registers.
      asm volatile("" : "+x"(low_sum), "+x"(high_sum));
    });
  });
}

template <int kRows, int kPanels>
[[gnu::always_inline]] inline void accumulate_f32(const LinearTile& tile,
                                                  const std::byte* weights,
                                                  Inputs inputs,
                                                  Sums<kRows, kPanels>& sums) {
  const std::ptrdiff_t panel_bytes = tile.panel_bytes;
  for (std::int32_t k = tile.k; k > 0; --k) {
    add_products<kRows, kPanels, Half::kF32>(weights, panel_bytes, inputs, sums);
    weights += kStepBytes;
    inputs.advance(1);
  }
}

/// BF16 or I8: pairs of k.
template <int kRows, int kPanels, Half kEven, Half kOdd, std::ptrdiff_t kBytes>
[[gnu::always_inline]] inline void accumulate_pairs(const LinearTile& tile,
                                                    const std::byte* weights,
                                                    Inputs inputs,
                                                    Sums<kRows, kPanels>& sums) {
  const std::ptrdiff_t panel_bytes = tile.panel_bytes;
  for (std::int32_t k = tile.k; k > 1; k -= 2) {
    add_products<kRows, kPanels, kEven>(weights, panel_bytes, inputs, sums);
    add_products<kRows, kPanels, kOdd>(weights, panel_bytes, inputs, sums);
    weights += kBytes;
    inputs.advance(2);
  }
  if (tile.k % 2 != 0) {  // the last k of an odd count has no partner
    add_products<kRows, kPanels, kEven>(weights, panel_bytes, inputs, sums);
  }
}

/// The first `columns` of 16 sums.
[[gnu::always_inline]] inline void store_columns(__m256 low,
                                                 __m256 high,
                                                 std::int32_t columns,
                                                 float* y) {
  if (columns >= kPanelColumns) {
    _mm256_storeu_ps(y, low);
    _mm256_storeu_ps(y + 8, high);
    return;
  }
  alignas(32) float all[kPanelColumns];
  _mm256_store_ps(all, low);
  _mm256_store_ps(all + 8, high);
  for (std::int32_t c = 0; c < columns; ++c) y[c] = all[c];
}

struct Kernel {
  static constexpr int max_panels(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

  template <int kRows, int kPanels>
  static void compute(const LinearTile& tile, std::int32_t panel, std::int32_t row) {
    const std::byte* weights = tile.weights + panel * tile.panel_bytes;
    const float* x = tile.x + row * tile.x_stride;
    // Pointers to rows that the block has not are never formed.
    const Inputs inputs{x, kRows > 3 ? x + 3 * tile.x_stride : x, tile.x_stride};
    Sums<kRows, kPanels> sums = {};
    switch (tile.type) {
      case WeightType::kF32:
        accumulate_f32<kRows, kPanels>(tile, weights, inputs, sums);
        break;
      case WeightType::kBF16:
        accumulate_pairs<kRows, kPanels, Half::kEven, Half::kOdd, kStepBytes>(tile, weights, inputs,
                                                                              sums);
        break;
      case WeightType::kI8:
        accumulate_pairs<kRows, kPanels, Half::kEvenI8, Half::kOddI8, kStepBytesI8>(tile, weights,
                                                                                    inputs, sums);
        break;
    }
    unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
      unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
        const std::int32_t first = (panel + p.value) * kPanelColumns;
        __m256 low = sums.low[r.value][p.value];
        __m256 high = sums.high[r.value][p.value];
        if (tile.scales != nullptr) {
          low = _mm256_mul_ps(low, _mm256_loadu_ps(tile.scales + first));
          high = _mm256_mul_ps(high, _mm256_loadu_ps(tile.scales + first + 8));
        }
        store_columns(
            low, high, tile.n - first,
            tile.y + (row + r.value) * tile.y_stride + (first - tile.panel_begin * kPanelColumns));
      });
    });
  }
};

}  // namespace

void linear_tile(const LinearTile& tile) { RowBlocks<Kernel, 6, 4>::all(tile); }

}  // namespace moiety::kernels::avx2
