// Each loop is one block of assembly, so that no compiler moves an accumulator to memory, merges
// loads, or leaves out a load whose value nobody uses. This file needs no instruction set options:
// matrix_loops() and read_bytes() choose by what the CPU has.
#include "bench/machine_loops.h"

#include "kernels/variant.h"

namespace moiety::bench {
namespace {

using kernels::Variant;

// Twelve independent chains of additions: at least latency times units of any CPU so far (FMA: 4
// cycles on two units; vdpbf16ps: 6 cycles on two).
#define MOIETY_CHAINS(op)                                                                  \
  op("0") op("1") op("2") op("3") op("4") op("5") op("6") op("7") op("8") op("9") op("10") \
      op("1"                                                                               \
         "1")
#define MOIETY_REGISTERS                                                                         \
  "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
      "xmm11", "xmm12", "xmm13", "xmm14"
constexpr double kChains = 12;
constexpr double kUnroll = 2;

const float kOne = 1.0f;
const std::uint32_t kTwoBf16Ones = 0x3f803f80u;

#define MOIETY_ZERO(i) "xorps %%xmm" i ", %%xmm" i "\n"
#define MOIETY_STEP(i) \
  "movaps %%xmm12, %%xmm14\nmulps %%xmm13, %%xmm14\naddps %%xmm14, %%xmm" i "\n"
void run_sse2(std::int64_t rounds) {
  asm volatile("movss %[one], %%xmm12\nshufps $0, %%xmm12, %%xmm12\nmovaps %%xmm12, %%xmm13\n"  //
               MOIETY_CHAINS(MOIETY_ZERO) "1:\n" MOIETY_CHAINS(MOIETY_STEP)
                   MOIETY_CHAINS(MOIETY_STEP) "dec %[rounds]\njnz 1b\n"
               : [rounds] "+r"(rounds)
               : [one] "m"(kOne)
               : MOIETY_REGISTERS);
}
#undef MOIETY_STEP
#undef MOIETY_ZERO

#define MOIETY_ZERO(i) "vxorps %%ymm" i ", %%ymm" i ", %%ymm" i "\n"
#define MOIETY_STEP(i) "vfmadd231ps %%ymm12, %%ymm13, %%ymm" i "\n"
void run_avx2(std::int64_t rounds) {
  asm volatile("vbroadcastss %[one], %%ymm12\nvmovaps %%ymm12, %%ymm13\n"  //
               MOIETY_CHAINS(MOIETY_ZERO) "1:\n" MOIETY_CHAINS(MOIETY_STEP)
                   MOIETY_CHAINS(MOIETY_STEP) "dec %[rounds]\njnz 1b\nvzeroupper\n"
               : [rounds] "+r"(rounds)
               : [one] "m"(kOne)
               : MOIETY_REGISTERS);
}
#undef MOIETY_STEP
#undef MOIETY_ZERO

#define MOIETY_ZERO(i) "vpxord %%zmm" i ", %%zmm" i ", %%zmm" i "\n"
#define MOIETY_STEP(i) "vfmadd231ps %%zmm12, %%zmm13, %%zmm" i "\n"
void run_avx512(std::int64_t rounds) {
  asm volatile("vbroadcastss %[one], %%zmm12\nvmovaps %%zmm12, %%zmm13\n"  //
               MOIETY_CHAINS(MOIETY_ZERO) "1:\n" MOIETY_CHAINS(MOIETY_STEP)
                   MOIETY_CHAINS(MOIETY_STEP) "dec %[rounds]\njnz 1b\nvzeroupper\n"
               : [rounds] "+r"(rounds)
               : [one] "m"(kOne)
               : MOIETY_REGISTERS);
}
#undef MOIETY_STEP

#define MOIETY_STEP(i) "vdpbf16ps %%zmm12, %%zmm13, %%zmm" i "\n"
void run_avx512_bf16(std::int64_t rounds) {
  asm volatile("vbroadcastss %[ones], %%zmm12\nvmovaps %%zmm12, %%zmm13\n"  //
               MOIETY_CHAINS(MOIETY_ZERO) "1:\n" MOIETY_CHAINS(MOIETY_STEP)
                   MOIETY_CHAINS(MOIETY_STEP) "dec %[rounds]\njnz 1b\nvzeroupper\n"
               : [rounds] "+r"(rounds)
               : [ones] "m"(kTwoBf16Ones)
               : MOIETY_REGISTERS);
}
#undef MOIETY_STEP
#undef MOIETY_ZERO

// Palette 1: eight tiles of 16 rows of 64 bytes (Intel SDM volume 1, chapter 18).
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

// Four accumulators, two tiles of each input: the widest use of eight tiles.
void run_amx(std::int64_t rounds) {
  static const TileConfig config;
  alignas(64) static const std::uint32_t ones[16] = {
      0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u,
      0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u,
      0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
  alignas(64) std::uint8_t before[64];
  const std::int64_t stride = 0;
  asm volatile(
      "sttilecfg %[before]\nldtilecfg %[config]\n"
      "tilezero %%tmm0\ntilezero %%tmm1\ntilezero %%tmm2\ntilezero %%tmm3\n"
      "tileloadd (%[ones],%[stride],1), %%tmm4\ntileloadd (%[ones],%[stride],1), %%tmm5\n"
      "tileloadd (%[ones],%[stride],1), %%tmm6\ntileloadd (%[ones],%[stride],1), %%tmm7\n"
      "1:\n"
      "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\ntdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
      "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\ntdpbf16ps %%tmm7, %%tmm5, %%tmm3\n"
      "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\ntdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
      "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\ntdpbf16ps %%tmm7, %%tmm5, %%tmm3\n"
      "dec %[rounds]\njnz 1b\n"
      "ldtilecfg %[before]\n"
      : [rounds] "+r"(rounds), [before] "+m"(before)
      : [config] "m"(config), [ones] "r"(ones), [stride] "r"(stride)
      : "cc", "memory");
}

// Two streams through one piece, two cache lines of each at a time: as fast as any other number of
// streams, with or without prefetching, on the CPUs tried.
void read_sse2(const std::byte* data, std::size_t half) {
  for (std::size_t i = 0; i < half; i += 128) {
    asm volatile(
        "movaps (%[a]), %%xmm0\nmovaps 16(%[a]), %%xmm1\nmovaps 32(%[a]), %%xmm2\n"
        "movaps 48(%[a]), %%xmm3\nmovaps 64(%[a]), %%xmm0\nmovaps 80(%[a]), %%xmm1\n"
        "movaps 96(%[a]), %%xmm2\nmovaps 112(%[a]), %%xmm3\n"
        "movaps (%[b]), %%xmm0\nmovaps 16(%[b]), %%xmm1\nmovaps 32(%[b]), %%xmm2\n"
        "movaps 48(%[b]), %%xmm3\nmovaps 64(%[b]), %%xmm0\nmovaps 80(%[b]), %%xmm1\n"
        "movaps 96(%[b]), %%xmm2\nmovaps 112(%[b]), %%xmm3\n"
        :
        : [a] "r"(data + i), [b] "r"(data + half + i)
        : "xmm0", "xmm1", "xmm2", "xmm3");
  }
}

void read_avx2(const std::byte* data, std::size_t half) {
  for (std::size_t i = 0; i < half; i += 128) {
    asm volatile(
        "vmovaps (%[a]), %%ymm0\nvmovaps 32(%[a]), %%ymm1\n"
        "vmovaps 64(%[a]), %%ymm2\nvmovaps 96(%[a]), %%ymm3\n"
        "vmovaps (%[b]), %%ymm0\nvmovaps 32(%[b]), %%ymm1\n"
        "vmovaps 64(%[b]), %%ymm2\nvmovaps 96(%[b]), %%ymm3\n"
        :
        : [a] "r"(data + i), [b] "r"(data + half + i)
        : "xmm0", "xmm1", "xmm2", "xmm3");
  }
  asm volatile("vzeroupper");
}

void read_avx512(const std::byte* data, std::size_t half) {
  for (std::size_t i = 0; i < half; i += 128) {
    asm volatile(
        "vmovaps (%[a]), %%zmm0\nvmovaps 64(%[a]), %%zmm1\n"
        "vmovaps (%[b]), %%zmm2\nvmovaps 64(%[b]), %%zmm3\n"
        :
        : [a] "r"(data + i), [b] "r"(data + half + i)
        : "xmm0", "xmm1", "xmm2", "xmm3");
  }
  asm volatile("vzeroupper");
}

}  // namespace

std::vector<MatrixLoop> matrix_loops() {
  using Inputs = MatrixLoop::Inputs;
  constexpr double kSteps = kChains * kUnroll;
  std::vector<MatrixLoop> loops = {{"sse2", Inputs::kF32, false, kSteps * 2 * 4, run_sse2}};
  if (kernels::variant_supported(Variant::kAvx2))
    loops.push_back({"avx2_fma", Inputs::kF32, false, kSteps * 2 * 8, run_avx2});
  if (kernels::variant_supported(Variant::kAvx512))
    loops.push_back({"avx512_fma", Inputs::kF32, false, kSteps * 2 * 16, run_avx512});
  if (kernels::variant_supported(Variant::kAvx512Bf16))
    loops.push_back({"avx512_bf16", Inputs::kBF16, false, kSteps * 4 * 16, run_avx512_bf16});
  if (kernels::variant_supported(Variant::kAmx))
    loops.push_back({"amx_bf16", Inputs::kBF16, true, 8.0 * 2 * 16 * 16 * 32, run_amx});
  return loops;
}

void read_bytes(const std::byte* data, std::size_t bytes) {
  using Read = void(const std::byte*, std::size_t);
  static Read* const read = kernels::variant_supported(Variant::kAvx512) ? read_avx512
                            : kernels::variant_supported(Variant::kAvx2) ? read_avx2
                                                                         : read_sse2;
  read(data, bytes / 2);
}

}  // namespace moiety::bench
