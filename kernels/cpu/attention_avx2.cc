#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/avx2_math.h"
#include "kernels/cpu/portable_rows.h"
#include "kernels/implementations.h"

namespace moiety::kernels::avx2 {
namespace {

/// Eight floats, for attention_tiles.h.
struct Vector {
  using Reg = __m256;
  static constexpr std::int32_t kLanes = avx2::kLanes;
  static constexpr int kMaxRows = 4;
  static constexpr int kMaxSums = 8;

  [[gnu::always_inline]] static Reg zero() { return _mm256_setzero_ps(); }
  [[gnu::always_inline]] static Reg load(const float* p) { return avx2::load(p); }
  [[gnu::always_inline]] static Reg load_first(const float* p, std::int32_t count) {
    return load_tail(p, count);
  }
  [[gnu::always_inline]] static Reg broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  [[gnu::always_inline]] static void store(float* p, Reg v) { _mm256_storeu_ps(p, v); }
  [[gnu::always_inline]] static void store_first(float* p, Reg v, std::int32_t count) {
    store_tail(p, v, count);
  }

  /// A pair is 32 bits: the even one is the lower half, the odd one the upper, which is a float
  /// once the lower is cleared.
  [[gnu::always_inline]] static void split(__m256i pairs, Reg& even, Reg& odd) {
    even = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    odd = _mm256_castsi256_ps(
        _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  [[gnu::always_inline]] static void load_pair(const bf16* p, Reg& even, Reg& odd) {
    split(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), even, odd);
  }
  [[gnu::always_inline]] static void load_pair_first(const bf16* p,
                                                     std::int32_t count,
                                                     Reg& even,
                                                     Reg& odd) {
    split(_mm256_maskload_epi32(reinterpret_cast<const int*>(p), lane_mask(count)), even, odd);
  }
  [[gnu::always_inline]] static Reg load_half(const bf16* p) { return avx2::load(p); }

  [[gnu::always_inline]] static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  [[gnu::always_inline]] static Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  [[gnu::always_inline]] static Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  [[gnu::always_inline]] static Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
  [[gnu::always_inline]] static Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  [[gnu::always_inline]] static Reg exp(Reg x) { return exp_f32(x); }
  [[gnu::always_inline]] static Reg keep(Reg v, std::int32_t first, std::int32_t end) {
    const __m256i lanes = _mm256_andnot_si256(lane_mask(first), lane_mask(end));
    return _mm256_blendv_ps(_mm256_set1_ps(-__builtin_inff()), v, _mm256_castsi256_ps(lanes));
  }
  [[gnu::always_inline]] static float max_lanes(Reg v) { return avx2::max_lanes(v); }
  /// The order of the AVX-512 variants: lanes 0 to 7 and 8 to 15 of four vectors of sixteen.
  [[gnu::always_inline]] static float sum_span(const Reg (&v)[8]) {
    const Reg low = _mm256_add_ps(_mm256_add_ps(v[0], v[2]), _mm256_add_ps(v[4], v[6]));
    const Reg high = _mm256_add_ps(_mm256_add_ps(v[1], v[3]), _mm256_add_ps(v[5], v[7]));
    return sum_lanes(_mm256_add_ps(low, high));
  }
};

}  // namespace

void attend(const AttentionTask& task) { tiles::attend<Vector>(task); }
void merge_parts(const AttentionParts& parts) { tiles::merge<Vector>(parts); }
void store_kv(const StoreTask& task) { KvStore<Vector>::run(task); }

}  // namespace moiety::kernels::avx2
