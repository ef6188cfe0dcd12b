#include "kernels/variant.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

namespace moiety::kernels {

std::string_view variant_name(Variant variant) {
  switch (variant) {
    case Variant::kReference:
      return "reference";
    case Variant::kPlain:
      return "plain";
    case Variant::kAvx2:
      return "avx2";
    case Variant::kAvx512:
      return "avx512";
    case Variant::kAvx512Bf16:
      return "avx512_bf16";
    case Variant::kAmx:
      return "amx";
  }
  return "?";
}

namespace {

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

/// CPUID leaf 7: AMX-BF16 (edx 22), AMX-TILE (edx 24) and AMX-INT8 (edx 25). Tile state is off in
/// every process until it asks for it (Linux 5.16, Documentation/arch/x86/xstate.rst).
bool has_amx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  for (const int bit : {22, 24, 25}) {
    if ((edx >> bit & 1) == 0) return false;
  }
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool variant_supported(Variant variant) {
  static const bool amx = has_amx();
  switch (variant) {
    case Variant::kReference:
    case Variant::kPlain:
      return true;
    case Variant::kAvx2:
      // Both include the operating system's part (saving the wide registers).
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Variant::kAvx512:
      return has_avx512();
    case Variant::kAvx512Bf16:
      return has_avx512() && __builtin_cpu_supports("avx512bf16") &&
             __builtin_cpu_supports("avx512vnni");
    case Variant::kAmx:
      return variant_supported(Variant::kAvx512Bf16) && amx;
  }
  return false;
}

std::vector<Variant> supported_variants() {
  std::vector<Variant> variants;
  for (Variant variant : kAllVariants) {
    if (variant_supported(variant)) variants.push_back(variant);
  }
  return variants;
}

std::string variant_choices() {
  std::string names = "auto";
  for (auto variant = kAllVariants.rbegin(); variant != kAllVariants.rend(); ++variant)
    names.append(", ").append(variant_name(*variant));
  return names;
}

Result<Variant> choose_variant(std::string_view name) {
  std::string_view wanted = name;
  std::string source = "kernels";
  if (name == "auto") {
    const char* from_environment = std::getenv("MOIETY_KERNELS");
    if (from_environment == nullptr || *from_environment == '\0')
      return supported_variants().back();
    wanted = from_environment;
    source = "environment variable MOIETY_KERNELS";
    if (wanted == "auto") return supported_variants().back();
  }
  for (Variant variant : kAllVariants) {
    if (variant_name(variant) != wanted) continue;
    if (variant_supported(variant)) return variant;
    return fail(ErrorCode::kInvalidArgument,
                source + ": this CPU cannot run '" + std::string(wanted) + "'; use auto");
  }
  return fail(ErrorCode::kInvalidArgument,
              source + ": '" + std::string(wanted) + "' is not one of " + variant_choices());
}

}  // namespace moiety::kernels
