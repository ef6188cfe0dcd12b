#include "kernels/variant.h"

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
  }
  return "?";
}

bool variant_supported(Variant variant) {
  switch (variant) {
    case Variant::kReference:
    case Variant::kPlain:
      return true;
    case Variant::kAvx2:
      // Both include the operating system's part (saving the wide registers).
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
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
  std::string names = "auto";
  for (Variant variant : kAllVariants) {
    names.append(", ").append(variant_name(variant));
    if (variant_name(variant) != wanted) continue;
    if (variant_supported(variant)) return variant;
    return fail(ErrorCode::kInvalidArgument,
                source + ": this CPU cannot run '" + std::string(wanted) + "'; use auto");
  }
  return fail(ErrorCode::kInvalidArgument,
              source + ": '" + std::string(wanted) + "' is not one of " + names);
}

}  // namespace moiety::kernels
