#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace moiety::kernels {

/// One implementation of all operations. Within a variant the bits of a row never depend on the
/// rows beside it, on chunking or on threads; between variants results differ by rounding.
enum class Variant : std::uint8_t {
  kReference,   ///< plain loops with double sums: the oracle
  kPlain,       ///< portable C++ with float sums
  kAvx2,        ///< AVX2 + FMA
  kAvx512,      ///< AVX-512 F, BW, VL, DQ: FMA in fp32
  kAvx512Bf16,  ///< the same with AVX512-BF16 and VNNI dot products where weights are BF16 and int8
  kAmx,         ///< the same with AMX tiles (BF16 and INT8) there
};

/// Slowest first, fastest last.
inline constexpr std::array kAllVariants = {Variant::kReference,  Variant::kPlain,
                                            Variant::kAvx2,       Variant::kAvx512,
                                            Variant::kAvx512Bf16, Variant::kAmx};

/// The name that people type: "reference", "plain", "avx2", "avx512", "avx512_bf16", "amx".
std::string_view variant_name(Variant variant);

/// Whether this CPU and its operating system can run it. For kAmx the first call asks the kernel to
/// let this process use tiles.
bool variant_supported(Variant variant);

/// Every variant that this CPU can run, reference first, fastest last.
std::vector<Variant> supported_variants();

/// Of functions whose bits are equal, that of the widest vectors that this CPU has.
template <class Function>
Function* widest(Function* plain, Function* avx2, Function* avx512) {
  return variant_supported(Variant::kAvx512) ? avx512
         : variant_supported(Variant::kAvx2) ? avx2
                                             : plain;
}

/// What choose_variant() takes, for help texts and messages: "auto, amx, ..., reference".
std::string variant_choices();

/// "auto" gives the fastest that the CPU has, or what the environment variable MOIETY_KERNELS
/// names; otherwise the named one. kInvalidArgument: unknown name, or the CPU cannot run it.
Result<Variant> choose_variant(std::string_view name);

}  // namespace moiety::kernels
