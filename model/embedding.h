#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "common/thread_pool.h"

namespace moiety {

/// Token embeddings [vocab, hidden], held as the serving dtype: F32 or BF16.
class EmbeddingTable {
 public:
  EmbeddingTable() = default;

  /// Reads tensor `name` of [rows, hidden] piece by piece, in `pool`; values are rounded to
  /// `dtype`. Errors are those of SafetensorsSet::read_floats().
  static Result<EmbeddingTable> load(const SafetensorsSet& tensors,
                                     const std::string& name,
                                     std::int64_t rows,
                                     std::int32_t hidden,
                                     DType dtype,
                                     ThreadPool& pool);

  /// out [hidden] = factor * the row of `token`, which is one of the vocabulary.
  void read(std::int32_t token, float factor, float* out) const;

  std::size_t num_bytes() const;

 private:
  std::size_t hidden_ = 0;
  std::vector<float> floats_;  // one of the two is empty
  std::vector<bf16> halves_;
};

}  // namespace moiety
