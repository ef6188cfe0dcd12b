#include <immintrin.h>

#include "kernels/implementations.h"

// One output is one chain of fused multiply-adds over k. Chains of several rows or panels run side
// by side to fill the latency of the units; how many does not touch any chain's bits.
namespace moiety::kernels::avx2 {
namespace {

constexpr std::int32_t kMaxRows = 6;
// One k of a panel in F32, or one pair of k in BF16.
constexpr std::ptrdiff_t kStepBytes = 64;

/// A number that is known when the code is compiled.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

/// Calls body(Constant<0>), body(Constant<1>), ... Unlike a loop it leaves only constant indices,
/// which is what lets the compiler keep an array of sums in registers.
template <int kCount, class Body>
[[gnu::always_inline]] inline void unrolled(const Body& body) {
  if constexpr (kCount > 0) {
    unrolled<kCount - 1>(body);
    body(Constant<kCount - 1>{});
  }
}

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

enum class Half { kF32, kEven, kOdd };

/// 8 weights as floats. A pair of BF16 is 32 bits: the even k is the lower half, the odd k the
/// upper, which is a float once the lower is cleared.
template <Half kHalf>
[[gnu::always_inline]] inline __m256 load_weights(const std::byte* p) {
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
    const __m256 high = load_weights<kHalf>(panel + 32);
    unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
      const __m256 input = inputs.broadcast<r.value>(kHalf == Half::kOdd ? 1 : 0);
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

template <int kRows, int kPanels>
[[gnu::always_inline]] inline void accumulate_bf16(const LinearTile& tile,
                                                   const std::byte* weights,
                                                   Inputs inputs,
                                                   Sums<kRows, kPanels>& sums) {
  const std::ptrdiff_t panel_bytes = tile.panel_bytes;
  for (std::int32_t k = tile.k; k > 1; k -= 2) {
    add_products<kRows, kPanels, Half::kEven>(weights, panel_bytes, inputs, sums);
    add_products<kRows, kPanels, Half::kOdd>(weights, panel_bytes, inputs, sums);
    weights += kStepBytes;
    inputs.advance(2);
  }
  // The last k of an odd count has no partner: x ends here.
  if (tile.k % 2 != 0) {
    add_products<kRows, kPanels, Half::kEven>(weights, panel_bytes, inputs, sums);
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

template <int kRows, int kPanels>
void compute(const LinearTile& tile, std::int32_t panel, std::int32_t row) {
  const std::byte* weights = tile.weights + panel * tile.panel_bytes;
  const float* x = tile.x + row * std::ptrdiff_t{tile.k};
  // Pointers to rows that the block has not are never formed.
  const Inputs inputs{x, kRows > 3 ? x + 3 * std::ptrdiff_t{tile.k} : x, tile.k};
  Sums<kRows, kPanels> sums = {};
  if (tile.is_bf16) {
    accumulate_bf16<kRows, kPanels>(tile, weights, inputs, sums);
  } else {
    accumulate_f32<kRows, kPanels>(tile, weights, inputs, sums);
  }
  unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
    float* y = tile.y + (row + r.value) * std::ptrdiff_t{tile.n};
    unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
      const std::int32_t first = (panel + p.value) * kPanelColumns;
      store_columns(sums.low[r.value][p.value], sums.high[r.value][p.value], tile.n - first,
                    y + first);
    });
  });
}

/// kRows rows over [panel, end): as many panels at a time as there are registers, then fewer.
template <int kRows>
void compute_rows(const LinearTile& tile, std::int32_t panel, std::int32_t end, std::int32_t row) {
  if constexpr (kRows == 1) {
    for (; panel + 4 <= end; panel += 4) compute<1, 4>(tile, panel, row);
  }
  if constexpr (kRows <= 3) {
    for (; panel + 2 <= end; panel += 2) compute<kRows, 2>(tile, panel, row);
  }
  for (; panel < end; ++panel) compute<kRows, 1>(tile, panel, row);
}

using ComputeRows = void(const LinearTile&, std::int32_t, std::int32_t, std::int32_t);
constexpr ComputeRows* kComputeRows[kMaxRows + 1] = {
    nullptr,         compute_rows<1>, compute_rows<2>, compute_rows<3>,
    compute_rows<4>, compute_rows<5>, compute_rows<6>};

}  // namespace

void linear_tile(const LinearTile& tile) {
  constexpr std::int32_t kPanelGroup = 4;
  // Equal blocks of at most six rows: 7 rows go as 4 + 3, since 1 alone would waste a pass.
  const std::int32_t blocks = (tile.rows + kMaxRows - 1) / kMaxRows;
  for (std::int32_t panel = tile.panel_begin; panel < tile.panel_end; panel += kPanelGroup) {
    const std::int32_t left = tile.panel_end - panel;
    const std::int32_t end = panel + (left < kPanelGroup ? left : kPanelGroup);
    std::int32_t row = 0;
    for (std::int32_t block = 0; block < blocks; ++block) {
      const std::int32_t rows = (tile.rows - row + blocks - block - 1) / (blocks - block);
      kComputeRows[rows](tile, panel, end, row);
      row += rows;
    }
  }
}

}  // namespace moiety::kernels::avx2
