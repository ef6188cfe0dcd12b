#include "kernels/cpu/avx2_math.h"
#include "kernels/implementations.h"

namespace moiety::kernels::avx2 {
namespace {

// Query heads that walk the blocks together and share what they read.
constexpr std::int32_t kMaxHeads = 8;
constexpr std::int32_t kChains = 4;
static_assert(kBlockTokens == 2 * kLanes, "a block's scores are two vectors");

/// The running maximum and sum of one head's softmax.
struct SoftmaxState {
  float max;
  float sum;
};

/// q . k for four tokens; each token's sum has eight lanes over head_dim, added in one fixed order.
template <class T>
[[gnu::always_inline]] inline __m128 dot4(const float* q,
                                          const T* const (&k)[4],
                                          std::int32_t head_dim) {
  __m256 sums[4] = {};
  std::int32_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) {
    const __m256 query = load(q + d);
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) sums[t] = _mm256_fmadd_ps(query, load(k[t] + d), sums[t]);
  }
  if (const std::int32_t left = head_dim - d; left > 0) {
    const __m256 query = load_tail(q + d, left);
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t)
      sums[t] = _mm256_fmadd_ps(query, load_tail(k[t] + d, left), sums[t]);
  }
  const __m256 pairs =
      _mm256_hadd_ps(_mm256_hadd_ps(sums[0], sums[1]), _mm256_hadd_ps(sums[2], sums[3]));
  return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

/// out[d] = out[d] * old_scale + sum of p[i] v[i][d], in token order, for kVectors * 8 columns.
template <class T, int kVectors>
[[gnu::always_inline]] inline void add_values(const T* v,
                                              std::int32_t head_dim,
                                              std::int32_t count,
                                              const float* p,
                                              float old_scale,
                                              float* out) {
  __m256 sums[kVectors];
  const __m256 scale = _mm256_set1_ps(old_scale);
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) sums[i] = _mm256_mul_ps(load(out + i * kLanes), scale);
  for (std::int32_t t = 0; t < count; ++t) {
    const __m256 weight = _mm256_broadcast_ss(p + t);
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      sums[i] = _mm256_fmadd_ps(weight, load(v + i * kLanes), sums[i]);
    }
    v += head_dim;
  }
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) _mm256_storeu_ps(out + i * kLanes, sums[i]);
}

/// The same for the last head_dim % 8 columns.
template <class T>
void add_values_tail(const T* v,
                     std::int32_t head_dim,
                     std::int32_t columns,
                     std::int32_t count,
                     const float* p,
                     float old_scale,
                     float* out) {
  __m256 sum = _mm256_mul_ps(load_tail(out, columns), _mm256_set1_ps(old_scale));
  for (std::int32_t t = 0; t < count; ++t) {
    sum = _mm256_fmadd_ps(_mm256_broadcast_ss(p + t), load_tail(v, columns), sum);
    v += head_dim;
  }
  store_tail(out, sum, columns);
}

/// Takes the first `count` tokens of one block into one head's softmax (Milakov and Gimelshein,
/// 2018): `out` is the sum of p v relative to the largest score so far.
template <class T>
void add_block(const AttentionTask& task,
               const T* k,
               const T* v,
               std::int32_t count,
               const float* q,
               SoftmaxState& state,
               float* out) {
  alignas(32) float p[kBlockTokens];
  for (std::int32_t t = 0; t < kBlockTokens; t += 4) {
    if (t >= count) {
      _mm_store_ps(p + t, _mm_setzero_ps());
      continue;
    }
    const T* tokens[4];
    // Beyond the last token repeat it: what lies behind it in the block may be anything.
    for (int i = 0; i < 4; ++i) {
      const std::ptrdiff_t token = t + i < count ? t + i : count - 1;
      tokens[i] = k + token * task.head_dim;
    }
    _mm_store_ps(p + t, dot4(q, tokens, task.head_dim));
  }
  const __m256 scale = _mm256_set1_ps(task.scale);
  const __m256 nothing = _mm256_set1_ps(-__builtin_inff());
  const __m256 low = _mm256_blendv_ps(nothing, _mm256_mul_ps(_mm256_load_ps(p), scale),
                                      _mm256_castsi256_ps(lane_mask(count)));
  const __m256 high = _mm256_blendv_ps(nothing, _mm256_mul_ps(_mm256_load_ps(p + kLanes), scale),
                                       _mm256_castsi256_ps(lane_mask(count - kLanes)));
  const float block_max = max_lanes(_mm256_max_ps(low, high));
  const float max = block_max > state.max ? block_max : state.max;
  const __m256 max8 = _mm256_set1_ps(max);
  const __m256 p_low = exp_f32(_mm256_sub_ps(low, max8));
  const __m256 p_high = exp_f32(_mm256_sub_ps(high, max8));
  _mm256_store_ps(p, p_low);
  _mm256_store_ps(p + kLanes, p_high);
  const float old_scale = _mm256_cvtss_f32(exp_f32(_mm256_set1_ps(state.max - max)));
  state.sum = state.sum * old_scale + sum_lanes(_mm256_add_ps(p_low, p_high));
  state.max = max;

  std::int32_t d = 0;
  for (; d + kChains * kLanes <= task.head_dim; d += kChains * kLanes) {
    add_values<T, kChains>(v + d, task.head_dim, count, p, old_scale, out + d);
  }
  for (; d + kLanes <= task.head_dim; d += kLanes) {
    add_values<T, 1>(v + d, task.head_dim, count, p, old_scale, out + d);
  }
  if (d < task.head_dim) {
    add_values_tail(v + d, task.head_dim, task.head_dim - d, count, p, old_scale, out + d);
  }
}

template <class T>
void attend_heads(const AttentionTask& task, std::int32_t heads, const float* q, float* out) {
  SoftmaxState states[kMaxHeads];
  for (std::int32_t h = 0; h < heads; ++h) states[h] = {-__builtin_inff(), 0.0f};
  for (std::int32_t i = 0; i < heads * task.head_dim; ++i) out[i] = 0.0f;
  for (std::int32_t begin = 0; begin < task.tokens; begin += kBlockTokens) {
    const std::ptrdiff_t block = task.block_table[begin / kBlockTokens] * task.block_bytes;
    const std::int32_t left = task.tokens - begin;
    const std::int32_t count = left < kBlockTokens ? left : kBlockTokens;
    for (std::int32_t h = 0; h < heads; ++h) {
      add_block(task, reinterpret_cast<const T*>(task.k + block),
                reinterpret_cast<const T*>(task.v + block), count, q + h * task.head_dim, states[h],
                out + h * task.head_dim);
    }
  }
  for (std::int32_t h = 0; h < heads; ++h) {
    for (std::int32_t d = 0; d < task.head_dim; ++d) out[h * task.head_dim + d] /= states[h].sum;
  }
}

}  // namespace

void attend(const AttentionTask& task) {
  for (std::int32_t head = 0; head < task.num_heads; head += kMaxHeads) {
    const std::int32_t left = task.num_heads - head;
    const std::int32_t heads = left < kMaxHeads ? left : kMaxHeads;
    const std::ptrdiff_t offset = std::ptrdiff_t{head} * task.head_dim;
    if (task.is_bf16) {
      attend_heads<bf16>(task, heads, task.q + offset, task.out + offset);
    } else {
      attend_heads<float>(task, heads, task.q + offset, task.out + offset);
    }
  }
}

}  // namespace moiety::kernels::avx2
