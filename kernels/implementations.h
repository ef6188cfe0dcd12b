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

enum class WeightType : std::uint8_t { kF32, kBF16, kI8 };

/// Outputs [0, rows) x [panel_begin * 16, min(panel_end * 16, n)) of y = x w^T.
///
/// An output's sum is one chain over k from zero, or with I8 an exact integer, then times the
/// column's and the row's scale, in this order: the row's is a power of two, which changes no bits
/// but where it over- or underflows. An output's bits depend on x's row and w's column only. Rows
/// in the forms that tiles read, kHalves and kDigits, may be read (not used) up to the next
/// multiple of 16.
struct LinearTile {
  WeightType type;
  const std::byte* weights;    ///< panel 0, laid out as PackedMatrix says
  std::ptrdiff_t panel_bytes;  ///< from one panel to the next
  const float* scales;         ///< I8: of column 0; else null
  std::int32_t n;
  std::int32_t k;
  std::int32_t panel_begin;
  std::int32_t panel_end;  ///< exclusive
  std::int32_t rows;
  const std::byte* x;              ///< [rows] in the InputForm of variant and weights
  std::ptrdiff_t x_stride;         ///< bytes from one row to the next
  const float* x_scales;           ///< I8: [rows], as FixedPointRow; else null
  const std::uint32_t* x_offsets;  ///< I8: [rows], as FixedPointRow; else null
  float* y;                        ///< its first column is panel_begin * 16
  std::ptrdiff_t y_stride;
  const std::byte* next = nullptr;  ///< weights that this thread will probably read afterwards, in
                                    ///< panels of the same size: only to be fetched ahead of time
};

/// How rows of x are held. k is padded with zeros to a multiple of kInputPadding.
enum class InputForm : std::uint8_t {
  kFloats,
  kHalves,      ///< BF16
  kFixedPoint,  ///< int16, as fixed_point.h says
  kDigits,      ///< the same split into digits
};
inline constexpr std::int32_t kInputPadding = 64;

inline constexpr std::int32_t kMaxQueries = 16;  ///< of one AttentionTask

/// Neighbouring rows of one sequence, with some or all of the query heads that share one KV head:
/// rows * heads queries, at most kMaxQueries. Tokens of the cache: see kv_layout.h.
struct AttentionTask {
  bool is_bf16;        ///< the cache: BF16 or F32
  const std::byte* k;  ///< this KV head in block 0
  const std::byte* v;
  std::ptrdiff_t block_bytes;  ///< from one block to the next
  const std::int32_t* block_table;
  std::int32_t head_dim;
  float scale;
  std::int32_t rows;
  std::int32_t heads;
  const std::int32_t* first;  ///< [rows] first token that the row sees; ascending
  const std::int32_t* end;    ///< [rows] exclusive, ascending; every row sees a token
  const float* q;             ///< [rows, heads, head_dim], rows `q_stride` floats apart
  std::ptrdiff_t q_stride;
  float* out;  ///< as q, rows `out_stride` apart
  std::ptrdiff_t out_stride;
  float* max;  ///< null: `out` is the result. Otherwise these tokens are a part of what the rows
  float* sum;  ///< see, and [rows, heads] each: the largest score, the sum of exp(score - max), and
               ///< in `out` the sum of exp(score - max) v
  float* scratch;  ///< 2 * kMaxQueries * (head_dim rounded up to 64), 64-byte aligned
};

/// One query's parts, in order of their tokens; `stride` floats lie between parts in all three.
struct AttentionParts {
  std::int32_t count;
  std::ptrdiff_t stride;
  float* max;  ///< overwritten
  float* sum;
  const float* values;  ///< [head_dim] each
  std::int32_t head_dim;
  float* out;  ///< [head_dim]: sum of values e^max / sum of sums e^max
};

/// k and v of `count` successive tokens for one KV head's part of one block.
struct StoreTask {
  bool is_bf16;
  std::byte* k;
  std::byte* v;
  std::int32_t head_dim;
  std::int32_t token;  ///< of the block, the first one
  std::int32_t count;
  const float* new_k;  ///< [count, head_dim], tokens `stride` floats apart
  const float* new_v;
  std::ptrdiff_t stride;
};

/// x is kFloats with F32 weights. avx512_bf16 and amx take kHalves with BF16 and kDigits with I8,
/// all others kFloats and kFixedPoint. Beside BF16 floats hold BF16 values. The bits of an output
/// with I8 are the same in every variant but the reference.
using LinearFn = void(const LinearTile& tile);
/// half[i] = x[i] rounded to nearest even; a NaN stays one.
using ToBf16Fn = void(const float* x, std::size_t size, std::uint16_t* half);
using AttentionFn = void(const AttentionTask& task);
using MergeFn = void(const AttentionParts& parts);
using StoreFn = void(const StoreTask& task);
/// x[i] = x[i] rounded to BF16, nearest even; a NaN stays one. The bits of every variant are equal.
using RoundFn = void(float* x, std::size_t size);
/// The largest |x[i]|, as bits: infinity is more than any number, and a NaN more than that.
using MagnitudeFn = std::uint32_t(const float* x, std::size_t size);
struct FixedPointSums {
  std::int64_t sum, magnitude;  ///< of q; of |q|
};
/// q[i] = x[i] * factor to nearest even; |x[i] * factor| < 2^15 - 1.
using FixedPointFn = FixedPointSums(const float* x,
                                    std::size_t size,
                                    float factor,
                                    std::int16_t* q);
/// As split_digits.
using DigitsFn = void(std::int16_t* q, std::int32_t blocks);
/// Quantises a row of BF16: bytes[i] = round(row[i] / scale) + 128, in [1, 255], and returns the
/// scale, max |row[i]| / 127. Rows are finite.
using QuantiseFn = float(const std::uint16_t* row, std::size_t size, std::uint8_t* bytes);
/// sum[i] += scale * x[i], the product rounded first. The bits of every variant are equal.
using AddFn = void(float* sum, const float* x, float scale, std::size_t size);
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
MergeFn merge_parts;
StoreFn store_kv;
RoundFn round_bf16;
AddFn add;
MagnitudeFn magnitude;
FixedPointFn fixed_point;
DigitsFn digits;
QuantiseFn quantise;
RmsNormFn rms_norm;
SiluMulFn silu_mul;
ExpFn exp_shifted;
}  // namespace plain

namespace avx2 {
LinearFn linear_tile;
AttentionFn attend;
MergeFn merge_parts;
StoreFn store_kv;
RoundFn round_bf16;
AddFn add;
MagnitudeFn magnitude;
FixedPointFn fixed_point;
DigitsFn digits;
QuantiseFn quantise;
RmsNormFn rms_norm;
SiluMulFn silu_mul;
ExpFn exp_shifted;
}  // namespace avx2

namespace avx512 {
LinearFn linear_tile;
AttentionFn attend;
MergeFn merge_parts;
StoreFn store_kv;
RoundFn round_bf16;
AddFn add;
MagnitudeFn magnitude;
FixedPointFn fixed_point;
DigitsFn digits;
QuantiseFn quantise;
RmsNormFn rms_norm;
SiluMulFn silu_mul;
ExpFn exp_shifted;
ToBf16Fn to_bf16;
}  // namespace avx512

namespace avx512_bf16 {
LinearFn linear_tile;
}  // namespace avx512_bf16

namespace amx {
LinearFn linear_tile;
/// The same with tiles in memory instead of registers: slow, for tests on machines without AMX.
LinearFn linear_tile_emulated;
}  // namespace amx

}  // namespace moiety::kernels
