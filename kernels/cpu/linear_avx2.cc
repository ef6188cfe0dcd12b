#include <immintrin.h>

#include "kernels/cpu/row_blocks.h"
#include "kernels/cpu/unrolled.h"

// One output is one chain of fused multiply-adds over k, or with I8 an exact integer. Chains of
// several rows or panels run side by side to fill the latency of the units; how many does not touch
// any chain's bits.
namespace moiety::kernels::avx2 {
namespace {

/// Where a panel's weights of the k-th of a group of k lie, from the group's first byte on.
template <WeightType kType>
constexpr std::ptrdiff_t offset_of(int k) {
  return kType == WeightType::kF32 ? k * 64 : k / 2 * 64;  // BF16: pairs of k
}
// k's that one round of a loop takes.
constexpr int kGroup = 4;
// Bytes to the weights that are fetched meanwhile, where one panel is walked at a time.
constexpr int kAhead = 4096;

/// Columns 8 * kHalf to 8 * kHalf + 7 of a panel at one k, as floats; `group` is where the k's
/// group begins. A pair of BF16 is 32 bits: the even k is the lower half, the odd k the upper,
/// which is a float once the lower is cleared.
template <WeightType kType, int kK, int kHalf>
[[gnu::always_inline]] inline __m256 load_weights(const std::byte* group) {
  const std::byte* p = group + offset_of<kType>(kK);
  if constexpr (kType == WeightType::kF32) {
    return _mm256_load_ps(reinterpret_cast<const float*>(p) + 8 * kHalf);
  } else {
    const __m256i pairs = _mm256_load_si256(reinterpret_cast<const __m256i*>(p) + kHalf);
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return _mm256_castsi256_ps(kK % 2 == 0 ? _mm256_slli_epi32(pairs, 16)
                                           : _mm256_and_si256(pairs, upper));
  }
}

/// Sums of kRows x kPanels panels; a panel's 16 columns are two vectors.
template <int kRows, int kPanels>
struct Sums {
  __m256 low[kRows][kPanels];
  __m256 high[kRows][kPanels];
};

/// The rows of x at one k. Two pointers and one distance reach six rows.
struct Inputs {
  const float* first;   ///< rows 0, 1, 2
  const float* second;  ///< rows 3, 4, 5
  std::ptrdiff_t stride;

  /// Pointers to rows that a block has not are never formed.
  template <int kRows>
  static Inputs of(const LinearTile& tile, std::int32_t row) {
    const auto* x = reinterpret_cast<const float*>(tile.x + row * tile.x_stride);
    const std::ptrdiff_t stride = tile.x_stride / static_cast<std::ptrdiff_t>(sizeof(float));
    return {x, kRows > 3 ? x + 3 * stride : x, stride};
  }
  template <int kRow>
  [[gnu::always_inline]] __m256 broadcast(int k) const {
    return _mm256_broadcast_ss((kRow < 3 ? first : second) + kRow % 3 * stride + k);
  }
  [[gnu::always_inline]] void advance(std::ptrdiff_t count) {
    first += count;
    second += count;
  }
};

/// Adds the products of one k to every sum.
template <WeightType kType, int kK, int kRows, int kPanels>
[[gnu::always_inline]] inline void add_products(const std::byte* group,
                                                std::ptrdiff_t panel_bytes,
                                                const Inputs& inputs,
                                                Sums<kRows, kPanels>& sums) {
  unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
    const std::byte* panel = group + p.value * panel_bytes;
    const __m256 low = load_weights<kType, kK, 0>(panel);
    const __m256 high = load_weights<kType, kK, 1>(panel);
    unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
      const __m256 input = inputs.broadcast<r.value>(kK);
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

/// Adds the products of `count` k's. kFetch: bytes from a panel's weights to those that shall be
/// fetched meanwhile; 0 fetches nothing.
template <WeightType kType, int kFetch, int kRows, int kPanels>
[[gnu::always_inline]] inline void accumulate(const std::byte* weights,
                                              std::ptrdiff_t panel_bytes,
                                              std::int32_t count,
                                              Inputs inputs,
                                              Sums<kRows, kPanels>& sums) {
  constexpr int kLines = static_cast<int>(offset_of<kType>(kGroup) / 64);
  for (; count >= kGroup; count -= kGroup) {
    if constexpr (kFetch != 0) {
      unrolled<kPanels * kLines>([&](auto i) __attribute__((always_inline)) {
        _mm_prefetch(reinterpret_cast<const char*>(weights + i.value / kLines * panel_bytes +
                                                   kFetch + i.value % kLines * 64),
                     _MM_HINT_T0);
      });
    }
    unrolled<kGroup>([&](auto k) __attribute__((always_inline)) {
      add_products<kType, k.value>(weights, panel_bytes, inputs, sums);
    });
    weights += offset_of<kType>(kGroup);
    inputs.advance(kGroup);
  }
  if (count > 0) add_products<kType, 0>(weights, panel_bytes, inputs, sums);
  if (count > 1) add_products<kType, 1>(weights, panel_bytes, inputs, sums);
  if (count > 2) add_products<kType, 2>(weights, panel_bytes, inputs, sums);
}

/// Writes eight outputs of one row from `column` on where they are columns of y.
[[gnu::always_inline]] inline void store(const LinearTile& tile,
                                         std::int32_t row,
                                         std::int32_t column,
                                         __m256 outputs) {
  float* y = tile.y + row * tile.y_stride + (column - tile.panel_begin * kPanelColumns);
  if (tile.n - column >= 8) {
    _mm256_storeu_ps(y, outputs);
    return;
  }
  alignas(32) float all[8];
  _mm256_store_ps(all, outputs);
  for (std::int32_t c = 0; c < tile.n - column; ++c) y[c] = all[c];
}

template <WeightType kType>
struct Fma {
  static constexpr int max_panels(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

  template <int kRows, int kPanels>
  static void compute(const LinearTile& tile, std::int32_t panel, std::int32_t row) {
    const std::byte* weights = tile.weights + panel * tile.panel_bytes;
    const Inputs inputs = Inputs::of<kRows>(tile, row);
    // One panel at a time is fetched too late by the CPU itself, several better without help.
    constexpr int kFetch = kPanels == 1 ? kAhead : 0;
    Sums<kRows, kPanels> sums = {};
    accumulate<kType, kFetch>(weights, tile.panel_bytes, tile.k, inputs, sums);
    unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
      unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
        const std::int32_t column = (panel + p.value) * kPanelColumns;
        store(tile, row + r.value, column, sums.low[r.value][p.value]);
        store(tile, row + r.value, column + 8, sums.high[r.value][p.value]);
      });
    });
  }
};

/// Integer sums: four columns and four k at a time, two successive k by VPMADDWD. Of many rows half
/// a panel's columns at a time have room in the registers.
struct Integers {
  static constexpr int max_panels(int) { return 1; }

  template <int kRows, int kPanels>
  static void compute(const LinearTile& tile, std::int32_t panel, std::int32_t row) {
    if constexpr (kRows <= 2) {
      columns<kRows, kPanelColumns>(tile, panel, 0, row);
    } else {
      columns<kRows, kPanelColumns / 2>(tile, panel, 0, row);
      columns<kRows, kPanelColumns / 2>(tile, panel, kPanelColumns / 2, row);
    }
  }

 private:
  /// kColumns of a panel from its column `first` on.
  template <int kRows, int kColumns>
  [[gnu::always_inline]] static void columns(const LinearTile& tile,
                                             std::int32_t panel,
                                             std::int32_t first,
                                             std::int32_t row) {
    constexpr int kParts = kColumns / 4;
    const std::byte* weights = tile.weights + panel * tile.panel_bytes + 4 * first;
    const std::ptrdiff_t stride = tile.x_stride;
    // Two pointers and one distance reach six rows; those to rows that are not there are not
    // formed.
    const std::byte* rows[] = {tile.x + row * stride,
                               tile.x + (kRows > 3 ? row + 3 : row) * stride};
    __m256i sums[kRows][kParts] = {};
    for (std::int32_t k = 0; k < tile.k; k += 4) {
      _mm_prefetch(reinterpret_cast<const char*>(weights + kAhead), _MM_HINT_T0);
      __m256i w[kParts];
      unrolled<kParts>([&](auto p) __attribute__((always_inline)) {
        w[p.value] = _mm256_cvtepu8_epi16(
            _mm_load_si128(reinterpret_cast<const __m128i*>(weights) + p.value));
      });
      unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
        const __m256i input = _mm256_broadcastq_epi64(_mm_loadl_epi64(
            reinterpret_cast<const __m128i*>(rows[r.value / 3] + r.value % 3 * stride)));
        unrolled<kParts>([&](auto p) __attribute__((always_inline)) {
          __m256i& sum = sums[r.value][p.value];
          sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w[p.value], input));
          asm volatile("" : "+x"(sum));  // as in add_products
        });
      });
      weights += 64;
      rows[0] += 8;
      rows[1] += 8;
    }
    unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
      unrolled<kParts / 2>([&](auto p) __attribute__((always_inline)) {
        const std::int32_t column = panel * kPanelColumns + first + 8 * p.value;
        store(tile, row + r.value, column,
              scaled(tile, row + r.value, column, sums[r.value][2 * p.value],
                     sums[r.value][2 * p.value + 1]));
      });
    });
  }
  /// Eight outputs from `column` on, of sums of columns 0 to 3 and 4 to 7, two of each.
  [[gnu::always_inline]] static __m256 scaled(
      const LinearTile& tile, std::int32_t row, std::int32_t column, __m256i low, __m256i high) {
    const __m256i both = _mm256_hadd_epi32(low, high);  // columns 0 1 4 5, 2 3 6 7
    const __m256i sums = _mm256_permute4x64_epi64(both, 0xd8);
    const __m256i offset = _mm256_set1_epi32(static_cast<std::int32_t>(tile.x_offsets[row]));
    const __m256 products = _mm256_cvtepi32_ps(_mm256_sub_epi32(sums, offset));
    return _mm256_mul_ps(_mm256_mul_ps(products, _mm256_loadu_ps(tile.scales + column)),
                         _mm256_set1_ps(tile.x_scales[row]));
  }
};

}  // namespace

void linear_tile(const LinearTile& tile) {
  switch (tile.type) {
    case WeightType::kF32:
      return RowBlocks<Fma<WeightType::kF32>, 6, 4>::all(tile);
    case WeightType::kBF16:
      return RowBlocks<Fma<WeightType::kBF16>, 6, 4>::all(tile);
    case WeightType::kI8:
      return RowBlocks<Integers, 6, 1>::all(tile);
  }
}

}  // namespace moiety::kernels::avx2
