#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/tile_product.h"
#include "kernels/cpu/unrolled.h"
#include "kernels/implementations.h"

/// Attention of a tile of queries on vectors of any width (V: tile_product.h): both products are
/// small matrix products (queries x keys of a block, probabilities x values) with their sums in
/// registers, so that what is read of the cache serves several queries.
///
/// A query's bits: a score is one chain over head_dim; scores of one span (kSpanTokens, at
/// multiples of it) enter the softmax together (Milakov and Gimelshein, 2018); an output is one
/// chain over the tokens that the query sees, in order. Nothing of that depends on the tile.
namespace moiety::kernels::tiles {

inline constexpr std::int32_t kSpanBlocks = kSpanTokens / kBlockTokens;
inline constexpr int kMaxColumns = 4;  // vectors of one row's sums that are in registers together
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// With a check at every access g++ takes minutes for all shapes.
inline constexpr bool kFewShapes = true;
#else
inline constexpr bool kFewShapes = false;
#endif

/// One AttentionTask.
template <class V, class T>
class Tile {
 public:
  [[gnu::always_inline]] explicit Tile(const AttentionTask& task)
      : task_(task),
        queries_(task.rows * task.heads),
        stride_((task.head_dim + V::kLanes - 1) / V::kLanes * V::kLanes),
        q_(task.scratch),
        out_(task.scratch + kMaxQueries * std::ptrdiff_t{kQueryChunk} * chunks()) {
    std::int32_t i = 0;
    for (std::int32_t row = 0; row < task.rows; ++row) {
      const float* q = task.q + row * task.q_stride;
      for (std::int32_t head = 0; head < task.heads; ++head, ++i, q += head_dim()) {
        first_[i] = task.first[row];
        end_[i] = task.end[row];
        max_[i] = -__builtin_inff();
        sum_[i] = 0;
        copy_query(i, q);
      }
    }
    for (std::int32_t j = 0; j < queries_ * stride_; j += V::kLanes) V::store(out_ + j, V::zero());
  }

  void run() {
    const std::int32_t last = end_[queries_ - 1];
    // Queries [begin, end) see tokens of the span; both ends only move forward.
    std::int32_t begin = 0;
    std::int32_t end = 0;
    for (std::int32_t span = first_[0] / kSpanTokens * kSpanTokens; span < last;
         span += kSpanTokens) {
      while (end_[begin] <= span) ++begin;
      while (end < queries_ && first_[end] < span + kSpanTokens) ++end;
      add_span(span, begin, end);
    }
    finish();
  }

 private:
  using Reg = typename V::Reg;
  static constexpr std::int32_t kVectors = kBlockTokens / V::kLanes;  // of one block's scores
  static constexpr std::int32_t kSpanVectors = kSpanTokens / V::kLanes;

  // Queries and probabilities lie in rows of the same fixed size: row addresses are constants then.
  static constexpr std::int32_t kQueryChunk = kSpanTokens;

  static constexpr int widest(int rows) {
    if (kFewShapes) return kVectors;
    return V::kMaxSums / rows < kMaxColumns ? V::kMaxSums / rows : kMaxColumns;
  }

  std::int32_t head_dim() const { return task_.head_dim; }
  std::int32_t chunks() const { return (head_dim() + kQueryChunk - 1) / kQueryChunk; }
  /// Head dimensions [chunk * kQueryChunk, ...) of query i.
  float* query(std::int32_t chunk, std::int32_t i) const {
    return q_ + (std::ptrdiff_t{chunk} * kMaxQueries + i) * kQueryChunk;
  }
  void copy_query(std::int32_t i, const float* q) {
    const Reg scale = V::broadcast(&task_.scale);
    for (std::int32_t d = 0; d < head_dim(); d += V::kLanes) {
      const std::int32_t left = head_dim() - d;
      const Reg part = left < V::kLanes ? V::load_first(q + d, left) : V::load(q + d);
      V::store(query(d / kQueryChunk, i) + d % kQueryChunk, V::mul(part, scale));
    }
  }
  /// The first and the exclusive last token of the span that query i sees.
  std::int32_t seen_first(std::int32_t i, std::int32_t span) const {
    return first_[i] > span ? first_[i] - span : 0;
  }
  std::int32_t seen_end(std::int32_t i, std::int32_t span) const {
    return end_[i] < span + kSpanTokens ? end_[i] - span : kSpanTokens;
  }

  void add_span(std::int32_t span, std::int32_t begin, std::int32_t end) {
    const std::int32_t first_block = seen_first(begin, span) / kBlockTokens;
    const std::int32_t end_block = (seen_end(end - 1, span) + kBlockTokens - 1) / kBlockTokens;
    for (std::int32_t b = first_block; b < end_block; ++b) {
      const std::ptrdiff_t offset = task_.block_table[span / kBlockTokens + b] * task_.block_bytes;
      k_[b] = reinterpret_cast<const T*>(task_.k + offset);
      v_[b] = reinterpret_cast<const T*>(task_.v + offset);
      const std::int32_t next = span / kBlockTokens + b + kSpanBlocks;
      const std::ptrdiff_t ahead = next * kBlockTokens < end_[queries_ - 1]
                                       ? task_.block_table[next] * task_.block_bytes
                                       : offset;
      k_ahead_[b] = reinterpret_cast<const T*>(task_.k + ahead);
      v_ahead_[b] = reinterpret_cast<const T*>(task_.v + ahead);
    }
    for_rows(
        begin, end, [&](auto rows, std::int32_t i) __attribute__((always_inline)) {
          score<rows.value>(i, first_block, end_block);
        });
    softmax(span, begin, end);
    for_rows(
        begin, end, [&](auto rows, std::int32_t i) __attribute__((always_inline)) {
          add_values<rows.value>(i, span);
        });
  }

  /// Calls body(Constant<rows>, first query) for queries [i, end): kMaxRows at a time, then four,
  /// then one.
  template <class Body>
  [[gnu::always_inline]] static void for_rows(std::int32_t i, std::int32_t end, const Body& body) {
    if constexpr (V::kMaxRows > 4 && !kFewShapes) {
      for (; i + V::kMaxRows <= end; i += V::kMaxRows) body(Constant<V::kMaxRows>{}, i);
    }
    for (; i + 4 <= end; i += 4) body(Constant<4>{}, i);
    for (; i < end; ++i) body(Constant<1>{}, i);
  }

  /// Scores of kRows queries from i on with every token of blocks [block, end).
  template <int kRows>
  [[gnu::noinline]] void score(std::int32_t i, std::int32_t block, std::int32_t end) {
    score_blocks<kRows, widest(kRows)>(i, block, end);
  }
  template <int kRows, int kColumns>
  [[gnu::always_inline]] void score_blocks(std::int32_t i, std::int32_t block, std::int32_t end) {
    constexpr int kBlocks = kColumns / kVectors;
    static_assert(kBlocks >= 1);
    for (; block + kBlocks <= end; block += kBlocks) {
      Keys<V, T, kBlocks> keys;
      unrolled<kBlocks>([&](auto b) __attribute__((always_inline)) {
        keys.blocks[b.value] = k_[block + b.value];
        keys.ahead[b.value] = k_ahead_[block + b.value];
      });
      Reg sums[kRows][kColumns];
      unrolled<kRows * kColumns>([&](auto s) __attribute__((always_inline)) {
        sums[s.value / kColumns][s.value % kColumns] = V::zero();
      });
      for (std::int32_t chunk = 0; chunk < chunks(); ++chunk) {
        const std::int32_t left = head_dim() - chunk * kQueryChunk;
        multiply<V, kRows, kColumns>(keys, 0, left < kQueryChunk ? left : kQueryChunk,
                                     query(chunk, i), sums);
        keys.skip(kQueryChunk);
      }
      unrolled<kRows * kColumns>([&](auto s) __attribute__((always_inline)) {
        V::store(p_[i + s.value / kColumns] + block * kBlockTokens + s.value % kColumns * V::kLanes,
                 sums[s.value / kColumns][s.value % kColumns]);
      });
    }
    if constexpr (kBlocks > 1) score_blocks<kRows, kVectors>(i, block, end);
  }

  /// Turns the scores of queries [begin, end) into probabilities relative to the largest score so
  /// far, and scales what was summed before down to it.
  [[gnu::noinline]] void softmax(std::int32_t span, std::int32_t begin, std::int32_t end) {
    alignas(64) float scale[kMaxQueries] = {};
    for (std::int32_t i = begin; i < end; ++i) {
      const std::int32_t first = seen_first(i, span);
      const std::int32_t last = seen_end(i, span);
      if (first > 0 || last < kSpanTokens) {
        unrolled<kSpanVectors>([&](auto s) __attribute__((always_inline)) {
          constexpr std::int32_t kLane = s.value * V::kLanes;
          V::store(p_[i] + kLane, V::keep(V::load(p_[i] + kLane), first - kLane, last - kLane));
        });
      }
      Reg max = V::load(p_[i]);
      unrolled<kSpanVectors - 1>([&](auto s) __attribute__((always_inline)) {
        max = V::max(max, V::load(p_[i] + (s.value + 1) * V::kLanes));
      });
      const float span_max = V::max_lanes(max);
      const float new_max = span_max > max_[i] ? span_max : max_[i];
      scale[i] = max_[i] - new_max;
      max_[i] = new_max;
    }
    for (std::int32_t i = begin / V::kLanes * V::kLanes; i < end; i += V::kLanes) {
      V::store(scale + i, V::exp(V::load(scale + i)));
    }
    for (std::int32_t i = begin; i < end; ++i) {
      const Reg query_max = V::broadcast(max_ + i);
      Reg p[kSpanVectors];
      unrolled<kSpanVectors>([&](auto s) __attribute__((always_inline)) {
        p[s.value] = V::exp(V::sub(V::load(p_[i] + s.value * V::kLanes), query_max));
        V::store(p_[i] + s.value * V::kLanes, p[s.value]);
      });
      sum_[i] = sum_[i] * scale[i] + V::sum_span(p);
      if (scale[i] == 1.0f) continue;
      const Reg factor = V::broadcast(scale + i);
      float* out = out_ + std::ptrdiff_t{i} * stride_;
      for (std::int32_t d = 0; d < stride_; d += V::kLanes) {
        V::store(out + d, V::mul(V::load(out + d), factor));
      }
    }
  }

  /// Adds the span's values to kRows queries from i on: the tokens that all of them see together,
  /// those before and behind for each query alone.
  template <int kRows>
  [[gnu::always_inline]] void add_values(std::int32_t i, std::int32_t span) {
    const std::int32_t first = seen_first(i + kRows - 1, span);
    const std::int32_t end = seen_end(i, span);
    if (kRows == 1 || first >= end) {
      for (std::int32_t r = i; r < i + kRows; ++r) {
        add_range<1>(r, seen_first(r, span), seen_end(r, span));
      }
      return;
    }
    for (std::int32_t r = i; r < i + kRows; ++r) add_range<1>(r, seen_first(r, span), first);
    add_range<kRows>(i, first, end);
    for (std::int32_t r = i; r < i + kRows; ++r) add_range<1>(r, end, seen_end(r, span));
  }

  /// Adds tokens [first, end) of the span to kRows queries, as many columns at a time as have room.
  template <int kRows>
  [[gnu::noinline]] void add_range(std::int32_t i, std::int32_t first, std::int32_t end) {
    if (first >= end) return;
    constexpr int kColumns = widest(kRows);
    std::int32_t column = 0;
    for (; column + kColumns * V::kLanes <= head_dim(); column += kColumns * V::kLanes) {
      add_vectors<kRows, kColumns, false>(i, first, end, column);
    }
    for (; column + V::kLanes <= head_dim(); column += V::kLanes) {
      add_vectors<kRows, 1, false>(i, first, end, column);
    }
    if (column < head_dim()) add_vectors<kRows, 1, true>(i, first, end, column);
  }
  template <int kRows, int kColumns, bool kPart>
  [[gnu::always_inline]] void add_vectors(std::int32_t i,
                                          std::int32_t first,
                                          std::int32_t end,
                                          std::int32_t column) {
    float* out = out_ + std::ptrdiff_t{i} * stride_ + column;
    Reg sums[kRows][kColumns];
    unrolled<kRows * kColumns>([&](auto s) __attribute__((always_inline)) {
      sums[s.value / kColumns][s.value % kColumns] =
          V::load(out + s.value / kColumns * stride_ + s.value % kColumns * V::kLanes);
    });
    // Columns of BF16 come in pairs of tokens.
    const std::ptrdiff_t offset = column * static_cast<std::ptrdiff_t>(4 / sizeof(T));
    for (std::int32_t b = first / kBlockTokens; b * kBlockTokens < end; ++b) {
      const std::int32_t token = b * kBlockTokens;
      const Values<V, T, kPart> values{v_[b] + offset, v_ahead_[b] + offset, head_dim(),
                                       head_dim() - column};
      multiply<V, kRows, kColumns>(values, first > token ? first - token : 0,
                                   end < token + kBlockTokens ? end - token : kBlockTokens,
                                   p_[i] + token, sums);
    }
    unrolled<kRows * kColumns>([&](auto s) __attribute__((always_inline)) {
      V::store(out + s.value / kColumns * stride_ + s.value % kColumns * V::kLanes,
               sums[s.value / kColumns][s.value % kColumns]);
    });
  }

  void finish() {
    for (std::int32_t i = 0; i < queries_; ++i) {
      const float* from = out_ + std::ptrdiff_t{i} * stride_;
      float* to = task_.out + i / task_.heads * task_.out_stride +
                  std::ptrdiff_t{i % task_.heads} * head_dim();
      const Reg sum = V::broadcast(sum_ + i);
      if (task_.max != nullptr) {
        task_.max[i] = max_[i];
        task_.sum[i] = sum_[i];
      }
      for (std::int32_t d = 0; d < head_dim(); d += V::kLanes) {
        Reg value = V::load(from + d);
        if (task_.max == nullptr) value = V::div(value, sum);
        if (d + V::kLanes <= head_dim()) {
          V::store(to + d, value);
        } else {
          V::store_first(to + d, value, head_dim() - d);
        }
      }
    }
  }

  const AttentionTask& task_;
  std::int32_t queries_;
  std::int32_t stride_;  // of out_: head_dim in whole vectors
  float* q_;             // [chunks, kMaxQueries, kQueryChunk], scaled
  float* out_;           // [queries, stride]: sums of p v
  const T* k_[kSpanBlocks];
  const T* v_[kSpanBlocks];
  const T* k_ahead_[kSpanBlocks];
  const T* v_ahead_[kSpanBlocks];
  std::int32_t first_[kMaxQueries];
  std::int32_t end_[kMaxQueries];
  alignas(64) float max_[kMaxQueries];
  float sum_[kMaxQueries];
  alignas(64) float p_[kMaxQueries][kSpanTokens];  // scores, then probabilities
};

template <class V>
[[gnu::always_inline]] inline void attend(const AttentionTask& task) {
  if (task.is_bf16) {
    Tile<V, bf16>(task).run();
  } else {
    Tile<V, float>(task).run();
  }
}

template <class V>
[[gnu::always_inline]] inline void merge(const AttentionParts& parts) {
  float max = parts.max[0];
  for (std::int32_t part = 1; part < parts.count; ++part) {
    const float other = parts.max[part * parts.stride];
    if (other > max) max = other;
  }
  float sum = 0;
  for (std::int32_t part = 0; part < parts.count; ++part) {
    const std::ptrdiff_t offset = part * parts.stride;
    const float difference = parts.max[offset] - max;
    float factor[V::kLanes];
    V::store(factor, V::exp(V::broadcast(&difference)));
    parts.max[offset] = factor[0];
    sum += parts.sum[offset] * factor[0];
  }
  for (std::int32_t d = 0; d < parts.head_dim; d += V::kLanes) {
    const std::int32_t left = parts.head_dim - d;
    typename V::Reg total = V::zero();
    for (std::int32_t part = 0; part < parts.count; ++part) {
      const float* values = parts.values + part * parts.stride + d;
      const auto value = left >= V::kLanes ? V::load(values) : V::load_first(values, left);
      total = V::fma(value, V::broadcast(parts.max + part * parts.stride), total);
    }
    total = V::div(total, V::broadcast(&sum));
    if (left >= V::kLanes) {
      V::store(parts.out + d, total);
    } else {
      V::store_first(parts.out + d, total, left);
    }
  }
}

}  // namespace moiety::kernels::tiles
