#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/avx512_math.h"
#include "kernels/cpu/portable_rows.h"
#include "kernels/implementations.h"

namespace moiety::kernels::avx512 {
namespace {

/// Sixteen floats, for attention_tiles.h.
struct Vector {
  using Reg = __m512;
  static constexpr std::int32_t kLanes = avx512::kLanes;
  static constexpr int kMaxRows = 8;
  static constexpr int kMaxSums = 16;

  [[gnu::always_inline]] static Reg zero() { return _mm512_setzero_ps(); }
  [[gnu::always_inline]] static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  [[gnu::always_inline]] static Reg load_first(const float* p, std::int32_t count) {
    return _mm512_maskz_loadu_ps(first_lanes(count), p);
  }
  [[gnu::always_inline]] static Reg broadcast(const float* p) { return _mm512_set1_ps(*p); }
  [[gnu::always_inline]] static void store(float* p, Reg v) { _mm512_storeu_ps(p, v); }
  [[gnu::always_inline]] static void store_first(float* p, Reg v, std::int32_t count) {
    _mm512_mask_storeu_ps(p, first_lanes(count), v);
  }

  /// A pair is 32 bits: the even one is the lower half, the odd one the upper, which is a float
  /// once the lower is cleared.
  [[gnu::always_inline]] static void split(__m512i pairs, Reg& even, Reg& odd) {
    even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    odd = _mm512_castsi512_ps(
        _mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  [[gnu::always_inline]] static void load_pair(const bf16* p, Reg& even, Reg& odd) {
    split(_mm512_loadu_si512(p), even, odd);
  }
  [[gnu::always_inline]] static void load_pair_first(const bf16* p,
                                                     std::int32_t count,
                                                     Reg& even,
                                                     Reg& odd) {
    split(_mm512_maskz_loadu_epi32(first_lanes(count), p), even, odd);
  }
  [[gnu::always_inline]] static Reg load_half(const bf16* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }

  [[gnu::always_inline]] static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  [[gnu::always_inline]] static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  [[gnu::always_inline]] static Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  [[gnu::always_inline]] static Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
  [[gnu::always_inline]] static Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  [[gnu::always_inline]] static Reg exp(Reg x) { return exp_f32(x); }
  [[gnu::always_inline]] static Reg keep(Reg v, std::int32_t first, std::int32_t end) {
    const auto lanes = static_cast<__mmask16>(first_lanes(end) & ~first_lanes(first));
    return _mm512_mask_mov_ps(_mm512_set1_ps(-__builtin_inff()), lanes, v);
  }
  [[gnu::always_inline]] static float max_lanes(Reg v) { return avx512::max_lanes(v); }
  [[gnu::always_inline]] static float sum_span(const Reg (&v)[4]) {
    return sum_lanes(_mm512_add_ps(_mm512_add_ps(v[0], v[1]), _mm512_add_ps(v[2], v[3])));
  }
};

}  // namespace

void attend(const AttentionTask& task) { tiles::attend<Vector>(task); }
void merge_parts(const AttentionParts& parts) { tiles::merge<Vector>(parts); }
void store_kv(const StoreTask& task) { KvStore<Vector>::run(task); }

}  // namespace moiety::kernels::avx512
