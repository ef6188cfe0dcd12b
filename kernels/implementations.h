#pragma once

#include <cstddef>
#include <cstdint>

/// What each variant implements, for the dispatching files of this folder (linear.cc, attention.cc,
/// ...) only.
///
/// Files of a variant may be compiled for instructions that this CPU lacks, and the linker keeps
/// one copy of an inline function for all files. So these signatures carry plain data, and such
/// files include this header, their own building blocks and intrinsics, nothing else: the
/// dispatchers check and split.
namespace moiety::kernels {

class PackedMatrix;

inline constexpr std::int32_t kPanelColumns = 16;  ///< PackedMatrix::kPanel
inline constexpr std::int32_t kBlockTokens = 16;   ///< kKvBlockSize

/// Outputs y[0 .. rows) x [panel_begin * 16, min(panel_end * 16, n)) of y = x w^T.
struct LinearTile {
  bool is_bf16;                ///< the weights: BF16 or F32
  const std::byte* weights;    ///< panel 0, laid out as PackedMatrix says
  std::ptrdiff_t panel_bytes;  ///< from one panel to the next
  std::int32_t n;
  std::int32_t k;
  std::int32_t panel_begin;
  std::int32_t panel_end;  ///< exclusive
  std::int32_t rows;
  const float* x;  ///< [rows, k]
  float* y;        ///< [rows, n]
};

/// All query heads that share one KV head, of one row.
struct AttentionTask {
  bool is_bf16;        ///< the cache: BF16 or F32
  const std::byte* k;  ///< this KV head in block 0: [kBlockTokens, head_dim]
  const std::byte* v;
  std::ptrdiff_t block_bytes;       ///< from one block to the next
  const std::int32_t* block_table;  ///< covers `tokens` tokens
  std::int32_t tokens;              ///< position + 1
  std::int32_t head_dim;
  std::int32_t num_heads;  ///< query heads in this task
  float scale;
  const float* q;  ///< [num_heads, head_dim]
  float* out;      ///< [num_heads, head_dim]
};

using LinearFn = void(const LinearTile& tile);
using AttentionFn = void(const AttentionTask& task);
/// As rms_norm.
using RmsNormFn = void(const float* x, const float* weight, float eps, std::int32_t size, float* y);
/// gate[i] = silu(gate[i]) * up[i]; an element's bits do not depend on its index.
using SiluMulFn = void(float* gate, const float* up, std::size_t size);
/// e[i] = exp(z[i] - shift); an element's bits do not depend on its index.
using ExpFn = void(const float* z, float shift, std::size_t size, double* e);

namespace reference {
LinearFn linear_tile;
AttentionFn attend;
RmsNormFn rms_norm;
SiluMulFn silu_mul;
ExpFn exp_shifted;
/// y = |x| |w|^T in double, [rows, n]: the magnitude that error bounds are made of.
void linear_magnitude(const PackedMatrix& w, const float* x, std::int32_t m, double* y);
}  // namespace reference

namespace plain {
LinearFn linear_tile;
AttentionFn attend;
RmsNormFn rms_norm;
SiluMulFn silu_mul;
ExpFn exp_shifted;
}  // namespace plain

namespace avx2 {
LinearFn linear_tile;
AttentionFn attend;
RmsNormFn rms_norm;
SiluMulFn silu_mul;
ExpFn exp_shifted;
}  // namespace avx2

}  // namespace moiety::kernels
