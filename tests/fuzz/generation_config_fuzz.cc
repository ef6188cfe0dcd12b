// generation_config.json, the defaults of sampling, from outside.
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "common/check.h"
#include "model/generation_config.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto defaults = moiety::GenerationDefaults::parse(text);
  if (!defaults) {
    MOIETY_CHECK(!defaults.error().message.empty(), "refused without a reason");
    return 0;
  }
  for (const auto& number :
       {defaults->temperature, defaults->top_p, defaults->min_p, defaults->repetition_penalty}) {
    MOIETY_CHECK(!number || (std::isfinite(*number) && *number >= 0), "accepted nonsense");
  }
  MOIETY_CHECK(!defaults->top_k || *defaults->top_k >= 0, "accepted nonsense");
  MOIETY_CHECK(!defaults->max_new_tokens || *defaults->max_new_tokens >= 0, "accepted nonsense");
  return 0;
}
