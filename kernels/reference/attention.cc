#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/dtype.h"
#include "kernels/implementations.h"

namespace moiety::kernels::reference {
namespace {

/// Element `d` of token `token` of k or v.
double cached(const AttentionTask& task,
              const std::byte* pool,
              std::int32_t token,
              std::int32_t d) {
  const std::byte* block = pool + task.block_table[token / kBlockTokens] * task.block_bytes;
  const std::ptrdiff_t index = std::ptrdiff_t{token % kBlockTokens} * task.head_dim + d;
  if (!task.is_bf16) return reinterpret_cast<const float*>(block)[index];
  return bf16_to_float(reinterpret_cast<const bf16*>(block)[index]);
}

void attend_head(const AttentionTask& task, const float* q, float* out) {
  std::vector<double> p(static_cast<std::size_t>(task.tokens));
  double max = -std::numeric_limits<double>::infinity();
  for (std::int32_t token = 0; token < task.tokens; ++token) {
    double dot = 0;
    for (std::int32_t d = 0; d < task.head_dim; ++d) dot += q[d] * cached(task, task.k, token, d);
    p[token] = dot * task.scale;
    max = std::max(max, p[token]);
  }
  double sum = 0;
  for (double& score : p) {
    score = std::exp(score - max);
    sum += score;
  }
  for (std::int32_t d = 0; d < task.head_dim; ++d) {
    double value = 0;
    for (std::int32_t token = 0; token < task.tokens; ++token) {
      value += p[token] * cached(task, task.v, token, d);
    }
    out[d] = static_cast<float>(value / sum);
  }
}

}  // namespace

void attend(const AttentionTask& task) {
  for (std::int32_t head = 0; head < task.num_heads; ++head) {
    const std::ptrdiff_t offset = std::ptrdiff_t{head} * task.head_dim;
    attend_head(task, task.q + offset, task.out + offset);
  }
}

}  // namespace moiety::kernels::reference
