#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "common/result.h"
#include "kernels/packed_matrix.h"

namespace moiety::kernels {

/// Fills `out` with consecutive rows of a matrix, row-major, from row `first_row` on.
using ReadRows = std::function<Result<void>(std::int64_t first_row, std::span<std::byte> out)>;

/// Packs a matrix [n, k] of `source` elements (F32, BF16 or F16) as `dtype`. It is read piece by
/// piece, so that no second copy of it is ever in memory, and a piece is packed while it is in the
/// cache. An error of `read` ends it. kResourceExhausted: no memory for it; loading threads, which
/// exceptions may not leave, depend on that.
Result<PackedMatrix> pack_stream(
    DType dtype, std::int32_t n, std::int32_t k, DType source, const ReadRows& read);

}  // namespace moiety::kernels
