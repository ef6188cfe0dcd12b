#include "kernels/pack_stream.h"

#include <algorithm>
#include <memory>
#include <new>
#include <string>

namespace moiety::kernels {

Result<PackedMatrix> pack_stream(
    DType dtype, std::int32_t n, std::int32_t k, DType source, const ReadRows& read) {
  constexpr std::size_t kPieceBytes = std::size_t{256} << 10;
  PackedMatrix matrix;
  try {
    matrix = PackedMatrix::unfilled(dtype, n, k);
  } catch (const std::bad_alloc&) {
    return fail(ErrorCode::kResourceExhausted,
                "no memory for a matrix of " + std::to_string(n) + " x " + std::to_string(k) +
                    " weights: serve fewer experts, or use --expert-dtype int8");
  }
  const std::size_t row_bytes = static_cast<std::size_t>(k) * dtype_bytes(source);
  const std::size_t panel_bytes = std::max<std::size_t>(1, row_bytes * PackedMatrix::kPanel);
  const auto panels =
      static_cast<std::int32_t>(std::clamp<std::size_t>(kPieceBytes / panel_bytes, 1, 1 << 16));
  const std::int32_t piece = panels * PackedMatrix::kPanel;
  const std::size_t buffer_bytes = row_bytes * static_cast<std::size_t>(std::min(piece, n));
  const auto buffer = std::make_unique_for_overwrite<std::byte[]>(buffer_bytes);
  for (std::int32_t first = 0; first < n; first += piece) {
    const std::int32_t count = std::min(piece, n - first);
    MOIETY_TRY(read(first, {buffer.get(), static_cast<std::size_t>(count) * row_bytes}));
    matrix.pack_rows(source, buffer.get(), first, count);
  }
  return matrix;
}

}  // namespace moiety::kernels
