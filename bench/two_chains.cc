#include "bench/two_chains.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/check.h"
#include "kernels/panel_runs.h"
#include "kernels/variant.h"

#define MOIETY_AVX512_BF16 [[gnu::target("avx512f,avx512bw,avx512bf16")]]

namespace moiety::bench {
namespace {

constexpr std::ptrdiff_t kPairBytes = 64;
constexpr std::int32_t kMostRows = 6;

struct Panels {
  const std::byte* weights;
  std::ptrdiff_t panel_bytes;
  const std::uint16_t* x;
  std::ptrdiff_t x_stride;
  std::int32_t pairs;
  std::int32_t n;
  float* y;
};

MOIETY_AVX512_BF16 __m512bh input(const std::uint16_t* x) {
  std::int32_t bits;
  std::memcpy(&bits, x, sizeof bits);
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(bits));
}

template <int kRows>
MOIETY_AVX512_BF16 void one_panel(const Panels& all, std::int32_t panel) {
  const std::byte* weights = all.weights + panel * all.panel_bytes;
  const std::uint16_t* x = all.x;
  __m512 even[kRows] = {};
  __m512 odd[kRows] = {};
  for (std::int32_t pair = 0; pair + 1 < all.pairs; pair += 2) {
    const auto w0 = reinterpret_cast<__m512bh>(_mm512_load_si512(weights));
    const auto w1 = reinterpret_cast<__m512bh>(_mm512_load_si512(weights + kPairBytes));
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      even[r] = _mm512_dpbf16_ps(even[r], input(x + r * all.x_stride), w0);
      odd[r] = _mm512_dpbf16_ps(odd[r], input(x + r * all.x_stride + 2), w1);
    }
    weights += 2 * kPairBytes;
    x += 4;
  }
  if (all.pairs % 2 != 0) {
    const auto w0 = reinterpret_cast<__m512bh>(_mm512_load_si512(weights));
    for (int r = 0; r < kRows; ++r)
      even[r] = _mm512_dpbf16_ps(even[r], input(x + r * all.x_stride), w0);
  }
  for (int r = 0; r < kRows; ++r) {
    _mm512_storeu_ps(all.y + std::ptrdiff_t{r} * all.n + panel * kernels::PackedMatrix::kPanel,
                     _mm512_add_ps(even[r], odd[r]));
  }
}

using OnePanel = void (*)(const Panels&, std::int32_t);
constexpr OnePanel kOnePanel[kMostRows] = {one_panel<1>, one_panel<2>, one_panel<3>,
                                           one_panel<4>, one_panel<5>, one_panel<6>};

}  // namespace

bool can_run_two_chains() {
  const auto variants = kernels::supported_variants();
  return std::find(variants.begin(), variants.end(), kernels::Variant::kAvx512Bf16) !=
         variants.end();
}

void linear_two_chains(const kernels::PackedMatrix& w,
                       const kernels::InputRows& x,
                       float* y,
                       ThreadPool& pool) {
  MOIETY_CHECK(w.dtype() == DType::kBF16 && w.n() % kernels::PackedMatrix::kPanel == 0 &&
                   x.m() >= 1 && x.m() <= kMostRows,
               "sizes that two_chains.h names");
  const Panels all{w.data(),
                   static_cast<std::ptrdiff_t>(w.panel_bytes()),
                   reinterpret_cast<const std::uint16_t*>(x.row(0)),
                   x.stride() / static_cast<std::ptrdiff_t>(sizeof(std::uint16_t)),
                   (w.k() + 1) / 2,
                   w.n(),
                   y};
  // Cut as kernels::linear cuts them.
  std::vector<std::int32_t> begins{0};
  kernels::PanelRuns runs(w.num_bytes(), pool.num_threads());
  while (begins.back() < w.num_panels()) {
    const std::int32_t left = w.num_panels() - begins.back();
    begins.push_back(begins.back() +
                     runs.take(left, w.panel_bytes(), kernels::PanelRuns::kAnyBytes));
  }
  pool.parallel_for(begins.size() - 1, [&](std::size_t run, std::size_t) {
    for (std::int32_t p = begins[run]; p < begins[run + 1]; ++p) kOnePanel[x.m() - 1](all, p);
  });
}

}  // namespace moiety::bench
