#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace moiety::bench {

/// A loop that multiplies and adds in registers and does nothing else, as one thread runs it.
/// Leaves the calling thread's tile configuration as it was.
struct MatrixLoop {
  enum class Inputs : std::uint8_t { kF32, kBF16 };
  const char* name;  ///< "amx_bf16", "avx512_bf16", "avx512_fma", "avx2_fma", "sse2"
  Inputs inputs;
  bool tiles;         ///< a matrix unit (AMX), not a vector unit
  double operations;  ///< of one round: a product and a sum are two
  void (*run)(std::int64_t rounds);
};

/// Those that this CPU can run; of each kind of inputs the widest vector unit comes last of its
/// kind.
std::vector<MatrixLoop> matrix_loops();

/// Loads `bytes` (a multiple of 4096) at `data` (64-byte aligned) with the CPU's widest loads, and
/// does nothing with them.
void read_bytes(const std::byte* data, std::size_t bytes);

}  // namespace moiety::bench
