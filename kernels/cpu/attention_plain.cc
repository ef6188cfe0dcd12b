#include <algorithm>
#include <limits>

#include "kernels/cpu/plain_math.h"
#include "kernels/implementations.h"

namespace moiety::kernels::plain {
namespace {

/// Online softmax (Milakov and Gimelshein, 2018) over whole blocks: `out` holds the sum of p v
/// relative to the largest score so far, and is scaled down when a block raises it.
template <class T>
void attend_head(const AttentionTask& task, const float* q, float* out) {
  std::fill_n(out, task.head_dim, 0.0f);
  float max = -std::numeric_limits<float>::infinity();
  float sum = 0;
  for (std::int32_t begin = 0; begin < task.tokens; begin += kBlockTokens) {
    const std::int32_t count = std::min(kBlockTokens, task.tokens - begin);
    const std::ptrdiff_t block = task.block_table[begin / kBlockTokens] * task.block_bytes;
    const T* k = reinterpret_cast<const T*>(task.k + block);
    const T* v = reinterpret_cast<const T*>(task.v + block);

    float p[kBlockTokens];
    float new_max = max;
    for (std::int32_t i = 0; i < count; ++i) {
      p[i] = dot(q, k + std::ptrdiff_t{i} * task.head_dim, task.head_dim) * task.scale;
      new_max = std::max(new_max, p[i]);
    }
    const float old_scale = exp_f32(max - new_max);
    max = new_max;
    sum *= old_scale;
    for (std::int32_t i = 0; i < count; ++i) {
      p[i] = exp_f32(p[i] - max);
      sum += p[i];
    }
    for (std::int32_t d = 0; d < task.head_dim; ++d) out[d] *= old_scale;
    for (std::int32_t i = 0; i < count; ++i) {
      const T* value = v + std::ptrdiff_t{i} * task.head_dim;
      for (std::int32_t d = 0; d < task.head_dim; ++d) out[d] += p[i] * load(value[d]);
    }
  }
  for (std::int32_t d = 0; d < task.head_dim; ++d) out[d] /= sum;
}

}  // namespace

void attend(const AttentionTask& task) {
  for (std::int32_t head = 0; head < task.num_heads; ++head) {
    const std::ptrdiff_t offset = std::ptrdiff_t{head} * task.head_dim;
    if (task.is_bf16) {
      attend_head<bf16>(task, task.q + offset, task.out + offset);
    } else {
      attend_head<float>(task, task.q + offset, task.out + offset);
    }
  }
}

}  // namespace moiety::kernels::plain
