#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/dtype.h"
#include "kernels/implementations.h"
#include "kernels/kv_layout.h"

namespace moiety::kernels::reference {
namespace {

const std::byte* block_of(const AttentionTask& task, const std::byte* pool, std::int32_t token) {
  return pool + task.block_table[token / kBlockTokens] * task.block_bytes;
}

double element(const AttentionTask& task, const std::byte* block, std::ptrdiff_t index) {
  if (!task.is_bf16) return reinterpret_cast<const float*>(block)[index];
  return bf16_to_float(reinterpret_cast<const bf16*>(block)[index]);
}

double key(const AttentionTask& task, std::int32_t token, std::int32_t d) {
  return element(task, block_of(task, task.k, token),
                 key_index(task.is_bf16, task.head_dim, token % kBlockTokens, d));
}

double value(const AttentionTask& task, std::int32_t token, std::int32_t d) {
  return element(task, block_of(task, task.v, token),
                 value_index(task.is_bf16, task.head_dim, token % kBlockTokens, d));
}

void attend_query(
    const AttentionTask& task, std::int32_t first, std::int32_t end, const float* q, float* out) {
  std::vector<double> p;
  double max = -std::numeric_limits<double>::infinity();
  for (std::int32_t token = first; token < end; ++token) {
    double dot = 0;
    for (std::int32_t d = 0; d < task.head_dim; ++d) dot += q[d] * key(task, token, d);
    p.push_back(dot * task.scale);
    max = std::max(max, p.back());
  }
  double sum = 0;
  for (double& score : p) {
    score = std::exp(score - max);
    sum += score;
  }
  for (std::int32_t d = 0; d < task.head_dim; ++d) {
    double total = 0;
    for (std::int32_t token = first; token < end; ++token) {
      total += p[static_cast<std::size_t>(token - first)] * value(task, token, d);
    }
    out[d] = static_cast<float>(total / sum);
  }
}

}  // namespace

void attend(const AttentionTask& task) {
  for (std::int32_t i = 0; i < task.rows * task.heads; ++i) {
    const std::int32_t row = i / task.heads;
    const std::ptrdiff_t head = std::ptrdiff_t{i % task.heads} * task.head_dim;
    attend_query(task, task.first[row], task.end[row], task.q + row * task.q_stride + head,
                 task.out + row * task.out_stride + head);
  }
}

}  // namespace moiety::kernels::reference
