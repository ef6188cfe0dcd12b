#include "model/embedding.h"

#include <algorithm>

#include "common/check.h"

namespace moiety {

Result<EmbeddingTable> EmbeddingTable::load(const SafetensorsSet& tensors,
                                            const std::string& name,
                                            std::int64_t rows,
                                            std::int32_t hidden,
                                            DType dtype,
                                            ThreadPool& pool) {
  MOIETY_CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "embeddings are F32 or BF16");
  EmbeddingTable table;
  table.hidden_ = static_cast<std::size_t>(hidden);
  const std::size_t count = static_cast<std::size_t>(rows) * table.hidden_;
  const bool halves = dtype == DType::kBF16;
  halves ? table.halves_.resize(count) : table.floats_.resize(count);
  constexpr std::size_t kPiece = std::size_t{1} << 18;
  const auto read_piece = [&](std::size_t piece) -> Result<void> {
    const std::size_t first = piece * kPiece;
    MOIETY_ASSIGN(const auto values,
                  tensors.read_floats(name, static_cast<std::int64_t>(first),
                                      static_cast<std::int64_t>(std::min(kPiece, count - first))));
    if (halves) {
      std::ranges::transform(values, &table.halves_[first], float_to_bf16);
    } else {
      std::ranges::copy(values, &table.floats_[first]);
    }
    return {};
  };
  MOIETY_TRY(pool.try_for((count + kPiece - 1) / kPiece, read_piece));
  return table;
}

void EmbeddingTable::read(std::int32_t token, float factor, float* out) const {
  const std::size_t first = static_cast<std::size_t>(token) * hidden_;
  for (std::size_t i = 0; i < hidden_; ++i) {
    out[i] = factor * (halves_.empty() ? floats_[first + i] : bf16_to_float(halves_[first + i]));
  }
}

std::size_t EmbeddingTable::num_bytes() const {
  return floats_.size() * sizeof(float) + halves_.size() * sizeof(bf16);
}

}  // namespace moiety
