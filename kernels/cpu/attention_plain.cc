#include <algorithm>
#include <limits>

#include "kernels/cpu/plain_math.h"
#include "kernels/cpu/portable_rows.h"
#include "kernels/implementations.h"
#include "kernels/kv_layout.h"

namespace moiety::kernels::plain {
namespace {

struct Unit;

/// The tokens of one query that its part of the task covers, block by block: online softmax
/// (Milakov and Gimelshein, 2018), `out` holds the sum of p v relative to the largest score so far,
/// and is scaled down when a block raises it.
template <class T>
class Query {
 public:
  Query(const AttentionTask& task, const float* q, float* out) : task_(task), q_(q), out_(out) {
    std::fill_n(out, task.head_dim, 0.0f);
  }

  void add_tokens(std::int32_t first, std::int32_t end) {
    for (std::int32_t begin = first / kBlockTokens * kBlockTokens; begin < end;
         begin += kBlockTokens) {
      add_block(begin / kBlockTokens, std::max(first - begin, 0),
                std::min(end - begin, kBlockTokens));
    }
  }
  float max() const { return max_; }
  float sum() const { return sum_; }

 private:
  void add_block(std::int32_t block, std::int32_t first, std::int32_t end) {
    const std::ptrdiff_t offset = task_.block_table[block] * task_.block_bytes;
    const T* k = reinterpret_cast<const T*>(task_.k + offset);
    const T* v = reinterpret_cast<const T*>(task_.v + offset);
    const bool is_bf16 = task_.is_bf16;

    float p[kBlockTokens] = {};
    float new_max = max_;
    for (std::int32_t t = first; t < end; ++t) {
      for (std::int32_t d = 0; d < task_.head_dim; ++d) {
        p[t] += q_[d] * load(k[key_index(is_bf16, task_.head_dim, t, d)]);
      }
      p[t] *= task_.scale;
      new_max = std::max(new_max, p[t]);
    }
    const float old_scale = exp_f32(max_ - new_max);
    max_ = new_max;
    sum_ *= old_scale;
    for (std::int32_t d = 0; d < task_.head_dim; ++d) out_[d] *= old_scale;
    for (std::int32_t t = first; t < end; ++t) {
      p[t] = exp_f32(p[t] - max_);
      sum_ += p[t];
      for (std::int32_t d = 0; d < task_.head_dim; ++d) {
        out_[d] += p[t] * load(v[value_index(is_bf16, task_.head_dim, t, d)]);
      }
    }
  }

  const AttentionTask& task_;
  const float* q_;
  float* out_;
  float max_ = -std::numeric_limits<float>::infinity();
  float sum_ = 0;
};

template <class T>
void attend_queries(const AttentionTask& task) {
  for (std::int32_t i = 0; i < task.rows * task.heads; ++i) {
    const std::int32_t row = i / task.heads;
    const std::ptrdiff_t head = std::ptrdiff_t{i % task.heads} * task.head_dim;
    float* out = task.out + row * task.out_stride + head;
    Query<T> query(task, task.q + row * task.q_stride + head, out);
    query.add_tokens(task.first[row], task.end[row]);
    if (task.max == nullptr) {
      for (std::int32_t d = 0; d < task.head_dim; ++d) out[d] /= query.sum();
    } else {
      task.max[i] = query.max();
      task.sum[i] = query.sum();
    }
  }
}

}  // namespace

void attend(const AttentionTask& task) {
  if (task.is_bf16) {
    attend_queries<bf16>(task);
  } else {
    attend_queries<float>(task);
  }
}

void merge_parts(const AttentionParts& parts) {
  float max = parts.max[0];
  for (std::int32_t part = 1; part < parts.count; ++part) {
    max = std::max(max, parts.max[part * parts.stride]);
  }
  float sum = 0;
  std::fill_n(parts.out, parts.head_dim, 0.0f);
  for (std::int32_t part = 0; part < parts.count; ++part) {
    const std::ptrdiff_t offset = part * parts.stride;
    const float scale = exp_f32(parts.max[offset] - max);
    sum += parts.sum[offset] * scale;
    for (std::int32_t d = 0; d < parts.head_dim; ++d) {
      parts.out[d] += parts.values[offset + d] * scale;
    }
  }
  for (std::int32_t d = 0; d < parts.head_dim; ++d) parts.out[d] /= sum;
}

void store_kv(const StoreTask& task) { KvStore<Unit>::run(task); }

}  // namespace moiety::kernels::plain
