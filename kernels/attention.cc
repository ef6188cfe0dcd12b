#include "kernels/attention.h"

#include <algorithm>
#include <vector>

#include "common/check.h"
#include "kernels/implementations.h"
#include "kernels/kv_rows.h"

namespace moiety::kernels {
namespace {

static_assert(kBlockTokens == kKvBlockSize);

// Keys of one part: softmax sums over parts of a context are joined in order, so several threads
// can share one long sequence. Fixed, or bits would depend on the batch.
constexpr std::int32_t kPartTokens = 512;
// Below this many products one thread is done before others have woken.
constexpr double kSerialProducts = 200e3;
// Floats that the parts of all rows may take together; beyond it there is work enough for every
// thread without sharing rows.
constexpr std::size_t kMaxSharedFloats = 1 << 20;

struct Kernel {
  AttentionFn* attend;
  MergeFn* merge;  ///< null: takes any context whole
};

Kernel attention_kernel(Variant variant) {
  switch (variant) {
    case Variant::kReference:
      return {reference::attend, nullptr};
    case Variant::kPlain:
      return {plain::attend, plain::merge_parts};
    case Variant::kAvx2:
      return {avx2::attend, avx2::merge_parts};
    case Variant::kAvx512:
    case Variant::kAvx512Bf16:
    case Variant::kAmx:
      return {avx512::attend, avx512::merge_parts};
  }
  check_failed("unknown variant", __FILE__, __LINE__);
}

/// This thread's memory of one kind, kept between calls; 64-byte aligned.
template <class Kind>
float* thread_memory(std::size_t floats) {
  constexpr std::size_t kAlign = 64;
  thread_local std::vector<float> memory;
  if (memory.size() < floats + kAlign / sizeof(float)) {
    memory.resize(floats + kAlign / sizeof(float));
  }
  const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
  return memory.data() + (kAlign - address % kAlign) % kAlign / sizeof(float);
}

struct ForTasks;  // what one task works in
struct ForParts;  // what several threads leave for a caller

/// One call of attention: the rows cut into tiles, the tiles' contexts into parts.
///
/// A unit is one tile with the query heads (at most kMaxQueries / rows) that share a KV head.
class Attention {
 public:
  Attention(Variant variant,
            const KvLayer& layer,
            std::span<const AttentionRow> rows,
            std::int32_t num_heads,
            float scale,
            std::int32_t window,
            const float* q,
            float* out)
      : kernel_(attention_kernel(variant)),
        layer_(layer),
        rows_(rows),
        num_heads_(num_heads),
        scale_(scale),
        q_(q),
        out_(out) {
    const std::int32_t group = num_heads / layer.num_kv_heads;
    head_sets_ = (group + kMaxQueries - 1) / kMaxQueries;
    heads_ = (group + head_sets_ - 1) / head_sets_;
    for (const AttentionRow& row : rows) {
      first_.push_back(window == 0 ? 0 : std::max(row.position - window + 1, 0));
      end_.push_back(row.position + 1);
      tokens_ += end_.back() - first_.back();
    }
    cut_into_tiles();
  }

  void run(ThreadPool& pool) {
    const double products = 2.0 * static_cast<double>(tokens_) * num_heads_ * layer_.head_dim;
    const bool is_serial = products < kSerialProducts;
    const std::size_t units = tiles_.size() * static_cast<std::size_t>(units_per_tile());
    const std::size_t shared = units * static_cast<std::size_t>(max_parts_) * part_floats();
    if (max_parts_ > 1 && !is_serial && shared <= kMaxSharedFloats) {
      float* const parts = thread_memory<ForParts>(shared);
      const auto part_count = static_cast<std::size_t>(max_parts_);
      const auto parts_of = [&](std::size_t unit) {
        return parts + unit * part_count * part_floats();
      };
      pool.parallel_for(units * part_count, [&](std::size_t i, std::size_t) {
        const std::size_t unit = i / part_count;
        run_part(unit, static_cast<std::int32_t>(i % part_count), parts_of(unit));
      });
      pool.parallel_for(units, [&](std::size_t unit, std::size_t) { merge(unit, parts_of(unit)); });
      return;
    }
    run_tasks(pool, is_serial, units, [&](std::size_t unit) {
      const std::int32_t parts = tile_of(unit).parts;
      float* memory =
          thread_memory<ForTasks>(task_floats() + static_cast<std::size_t>(parts) * part_floats());
      for (std::int32_t part = 0; part < parts; ++part) {
        run_part(unit, part, memory + task_floats());
      }
      merge(unit, memory + task_floats());
    });
  }

 private:
  struct Tile {
    std::size_t row;  ///< the first
    std::int32_t rows;
    std::int32_t first_part;  ///< where the context of every row begins
    std::int32_t parts;       ///< 1 where the kernel takes it whole
  };

  /// Rows of one tile begin and end in the same parts, so that how many parts a row's sum has is
  /// its own affair.
  void cut_into_tiles() {
    const std::int32_t max_rows = std::max(1, kMaxQueries / heads_);
    for (std::size_t row = 0; row < rows_.size(); ++row) {
      const bool is_whole = kernel_.merge == nullptr;
      const std::int32_t first_part = is_whole ? 0 : first_[row] / kPartTokens;
      const std::int32_t parts = is_whole ? 1 : rows_[row].position / kPartTokens - first_part + 1;
      max_parts_ = std::max(max_parts_, parts);
      if (!tiles_.empty()) {
        Tile& last = tiles_.back();
        if (last.rows < max_rows && is_sequel(rows_[row - 1], rows_[row]) &&
            last.first_part == first_part && last.parts == parts) {
          ++last.rows;
          continue;
        }
      }
      tiles_.push_back({row, 1, first_part, parts});
    }
  }

  std::int32_t units_per_tile() const { return layer_.num_kv_heads * head_sets_; }
  /// Neighbouring units share a KV head, whose blocks then stay in the cache when the tiles are of
  /// one sequence.
  const Tile& tile_of(std::size_t unit) const { return tiles_[unit % tiles_.size()]; }
  std::int32_t kv_head_of(std::size_t unit) const {
    return static_cast<std::int32_t>(unit / tiles_.size()) / head_sets_;
  }
  std::int32_t first_head_of(std::size_t unit) const {
    const std::int32_t group = num_heads_ / layer_.num_kv_heads;
    const auto set = static_cast<std::int32_t>(unit / tiles_.size()) % head_sets_;
    return kv_head_of(unit) * group + set * heads_;
  }
  std::int32_t heads_of(std::size_t unit) const {
    const std::int32_t group = num_heads_ / layer_.num_kv_heads;
    return std::min(heads_, (kv_head_of(unit) + 1) * group - first_head_of(unit));
  }

  /// What a task works in.
  std::size_t task_floats() const {
    return static_cast<std::size_t>(2 * kMaxQueries * ((layer_.head_dim + 63) / 64 * 64));
  }
  /// One part of a unit: max, sum and values of every query.
  std::size_t part_floats() const {
    return static_cast<std::size_t>(kMaxQueries) * static_cast<std::size_t>(layer_.head_dim + 2);
  }
  std::ptrdiff_t row_floats() const { return std::ptrdiff_t{num_heads_} * layer_.head_dim; }
  std::ptrdiff_t offset_of(std::size_t unit) const {
    return static_cast<std::ptrdiff_t>(tile_of(unit).row) * row_floats() +
           std::ptrdiff_t{first_head_of(unit)} * layer_.head_dim;
  }

  /// Computes one part of a unit; `parts` is that unit's memory for all of them. A unit of one part
  /// goes to `out` at once.
  void run_part(std::size_t unit, std::int32_t part, float* parts) const {
    const Tile& tile = tile_of(unit);
    if (part >= tile.parts) return;
    const std::int32_t heads = heads_of(unit);
    const std::ptrdiff_t kv_offset = kv_head_of(unit) * head_bytes(layer_);
    AttentionTask task{.is_bf16 = layer_.dtype == DType::kBF16,
                       .k = layer_.k + kv_offset,
                       .v = layer_.v + kv_offset,
                       .block_bytes = layer_.num_kv_heads * head_bytes(layer_),
                       .block_table = rows_[tile.row].block_table.data(),
                       .head_dim = layer_.head_dim,
                       .scale = scale_,
                       .rows = tile.rows,
                       .heads = heads,
                       .first = &first_[tile.row],
                       .end = &end_[tile.row],
                       .q = q_ + offset_of(unit),
                       .q_stride = row_floats(),
                       .out = out_ + offset_of(unit),
                       .out_stride = row_floats(),
                       .max = nullptr,
                       .sum = nullptr,
                       .scratch = thread_memory<ForTasks>(task_floats())};
    if (tile.parts == 1) return kernel_.attend(task);

    const std::int32_t begin = (tile.first_part + part) * kPartTokens;
    std::int32_t first[kMaxQueries];
    std::int32_t end[kMaxQueries];
    for (std::int32_t row = 0; row < tile.rows; ++row) {
      first[row] = std::max(task.first[row], begin);
      end[row] = std::min(task.end[row], begin + kPartTokens);
    }
    task.first = first;
    task.end = end;
    task.max = parts + static_cast<std::size_t>(part) * part_floats();
    task.sum = task.max + kMaxQueries;
    task.out = task.sum + kMaxQueries;
    task.out_stride = std::ptrdiff_t{heads} * layer_.head_dim;
    kernel_.attend(task);
  }

  void merge(std::size_t unit, float* parts) const {
    const Tile& tile = tile_of(unit);
    if (tile.parts == 1) return;
    const std::int32_t heads = heads_of(unit);
    for (std::int32_t i = 0; i < tile.rows * heads; ++i) {
      kernel_.merge({.count = tile.parts,
                     .stride = static_cast<std::ptrdiff_t>(part_floats()),
                     .max = parts + i,
                     .sum = parts + kMaxQueries + i,
                     .values = parts + 2 * kMaxQueries + std::ptrdiff_t{i} * layer_.head_dim,
                     .head_dim = layer_.head_dim,
                     .out = out_ + offset_of(unit) + i / heads * row_floats() +
                            std::ptrdiff_t{i % heads} * layer_.head_dim});
    }
  }

  Kernel kernel_;
  const KvLayer& layer_;
  std::span<const AttentionRow> rows_;
  std::int32_t num_heads_;
  float scale_;
  const float* q_;
  float* out_;
  std::int32_t head_sets_;  // the query heads of a KV head go in so many units
  std::int32_t heads_;      // of a unit, at most
  std::vector<std::int32_t> first_;
  std::vector<std::int32_t> end_;
  std::vector<Tile> tiles_;
  std::int32_t max_parts_ = 1;
  std::int64_t tokens_ = 0;  // over all rows
};

}  // namespace

void attention(Variant variant,
               const KvLayer& layer,
               std::span<const AttentionRow> rows,
               std::int32_t num_heads,
               float scale,
               std::int32_t window,
               const float* q,
               float* out,
               ThreadPool& pool) {
  if (rows.empty()) return;
  check_layer(layer);
  MOIETY_CHECK(num_heads > 0 && num_heads % layer.num_kv_heads == 0,
               "query heads are not a multiple of KV heads");
  MOIETY_CHECK(window >= 0, "a window counts tokens; 0 means none");
  for (const AttentionRow& row : rows) check_covered(row.block_table, row.position);
  Attention(variant, layer, rows, num_heads, scale, window, q, out).run(pool);
}

}  // namespace moiety::kernels
